"""The interpreter behind its door: started when somebody knocks, as confined as all else."""

from __future__ import annotations

import contextlib
import http.client
import signal
import time

import pytest

from runtime.conftest import LauncherProcess, Sandbox, Start
from sandgate.runtime.client import LauncherClient

TEMPLATE = "code-interpreter-v1"
PORT = 49999
_COUNT = "pgrep -fc sandgate.interprete[r] || true"
_DOCKER = 0x00000000A80425FB

pytestmark = pytest.mark.timeout(60)


def health(sandbox: Sandbox) -> str:
    """Knock, and wait for an answer."""
    connection = http.client.HTTPConnection(str(sandbox.launched.address))
    connection.sock = sandbox.launcher.connect(sandbox.launched.address, PORT)
    connection.sock.settimeout(20)
    with contextlib.closing(connection):
        connection.request("GET", "/health")
        return connection.getresponse().read().decode()


def first_process(sandbox: Sandbox) -> str:
    """Its pid inside."""
    return sandbox.run("pgrep -of sandgate.interprete[r]")[1].strip()


async def test_it_is_started_by_the_first_connection_and_again_when_it_died(start: Start) -> None:
    sandbox = await start(template=TEMPLATE)
    assert sandbox.run(_COUNT)[1] == "0\n"
    assert health(sandbox) == "OK"
    assert sandbox.run(_COUNT)[1] == "2\n"
    before = first_process(sandbox)
    for _ in range(2):
        sandbox.run("pkill -9 -f sandgate.interprete[r]")
        assert health(sandbox) == "OK"
    assert first_process(sandbox) != before


async def test_a_launcher_that_was_killed_changes_nothing(
    start: Start, launcher: LauncherProcess, client: LauncherClient
) -> None:
    used, unused = await start("iused", template=TEMPLATE), await start("inew", template=TEMPLATE)
    assert health(used) == "OK"
    before = first_process(used)
    launcher.stop(signal.SIGKILL)
    assert health(used) == "OK"
    launcher.start()
    end = time.monotonic() + 20
    while {one.sandbox_id for one in await client.running()} != {"iused", "inew"}:
        assert time.monotonic() < end
    assert health(used) == "OK" and first_process(used) == before
    used.run("pkill -9 -f sandgate.interprete[r]")
    assert health(used) == "OK" and first_process(used) != before
    assert unused.run(_COUNT)[1] == "0\n"
    assert health(unused) == "OK"


async def test_it_is_as_confined_as_a_command(start: Start, launcher: LauncherProcess) -> None:
    sandbox = await start(template=TEMPLATE)
    assert health(sandbox) == "OK"
    pid = first_process(sandbox)
    status = dict(
        line.split(":", 1) for line in sandbox.run(f"cat /proc/{pid}/status")[1].splitlines()
    )
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) & ~_DOCKER == 0, kind
    assert status["Seccomp"].strip() == "2"
    assert status["Uid"].split() == ["0"] * 4
    namespaces = "for n in user mnt net pid ipc uts cgroup; do readlink /proc/{}/ns/$n; done"
    assert sandbox.run(namespaces.format(pid))[1] == sandbox.run(namespaces.format("self"))[1]
    assert sandbox.run(f"readlink /proc/{pid}/root /proc/{pid}/cwd")[1] == "/\n/\n"
    own = sandbox.run("cat /proc/self/cgroup")[1]
    assert sandbox.run(f"cat /proc/{pid}/cgroup")[1] == own
    seen = sandbox.run(f"cat /proc/{pid}/{{environ,maps,mountinfo,cmdline}}; ls -l /proc/{pid}/fd")[
        1
    ]
    assert str(launcher.settings.data_dir) not in seen and "rootfs" not in seen


async def test_the_program_that_all_interpreters_share_cannot_be_written_to(start: Start) -> None:
    """Not even when it no longer runs, by who has kept a handle on it."""
    sandbox = await start(template=TEMPLATE)
    assert health(sandbox) == "OK"
    pid = first_process(sandbox)
    steps = (
        f"import os; f = os.open('/proc/{pid}/exe', os.O_PATH); os.kill({pid}, 9)",
        f"while os.path.exists('/proc/{pid}/exe'): pass",
        "os.open('/proc/self/fd/%d' % f, os.O_RDWR)",
    )
    code, output = sandbox.run("python3 -c '" + "\n".join(steps).replace("'", '"') + "'")
    assert code != 0 and "Read-only file system" in output, output
