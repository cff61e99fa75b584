"""Pausing: processes stand still and go on as if nothing had been; callers are cut off at once."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from runtime.conftest import LauncherProcess, Sandbox, Start
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime.client import LauncherClient, LauncherError

_COUNT = (
    "python3 -uc 'import time\n"
    'while True: open("/tmp/count", "a").write("."); time.sleep(0.01)\''
    " > /dev/null 2>&1 & until [ -s /tmp/count ]; do sleep 0.01; done"
)


def count(sandbox: Sandbox) -> int:
    return int(sandbox.run("stat -c %s /tmp/count")[1])


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


async def test_a_paused_sandbox_stands_still_and_then_goes_on(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("istill")
    sandbox.run(_COUNT)
    await client.pause("istill")
    (launched,) = await client.running()
    assert launched.paused
    children = Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()
    before = [cpu_ticks(int(pid)) for pid in children]
    assert before
    await asyncio.sleep(0.3)
    assert [cpu_ticks(int(pid)) for pid in children] == before
    await client.pause("istill")  # again, harmlessly
    await client.resume("istill")
    assert (await client.running()) == [sandbox.launched]
    first = count(sandbox)
    await asyncio.sleep(0.2)
    assert count(sandbox) > first
    await client.resume("istill")  # again, harmlessly


async def test_pausing_cuts_callers_off_and_leaves_sockets_inside(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("icut")
    other = await start("iother")
    server = (
        "import socket, time\n"
        'listener = socket.create_server(("0.0.0.0", 8000))\n'
        'inner = socket.create_connection(("127.0.0.1", 8000)); mine, _ = listener.accept()\n'
        'open("/tmp/up", "w").write("1")\n'
        "while True:\n"
        "    caller, _ = listener.accept()\n"
        '    inner.sendall(b"kept"); caller.sendall(mine.recv(4))\n'
    )
    for box in (sandbox, other):
        box.run(f"python3 -c '{server}' > /tmp/log 2>&1 & until [ -e /tmp/up ]; do sleep .01; done")
    calls = [launcher.connect(box.launched.address, 8000) for box in (sandbox, other)]
    assert [call.recv(4) for call in calls] == [b"kept", b"kept"]
    begun = time.monotonic()
    await client.pause("icut")
    with pytest.raises(ConnectionError):
        calls[0].recv(1)
    assert time.monotonic() - begun < 0.5
    calls[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        calls[1].recv(1)
    await client.resume("icut")
    again = launcher.connect(sandbox.launched.address, 8000)
    assert again.recv(4) == b"kept"
    for call in (*calls, again):
        call.close()


async def test_who_connects_to_a_paused_sandbox_in_the_last_moment_is_cut_off_too(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("ilate")
    await client.pause("ilate")
    late = launcher.connect(sandbox.launched.address, 49983)
    with pytest.raises(ConnectionError):
        late.recv(1)
    late.close()


async def test_a_paused_sandbox_can_be_killed(start: Start, client: LauncherClient) -> None:
    sandbox = await start("ikilled")
    await client.pause("ikilled")
    await client.kill("ikilled")
    assert await client.running() == []
    assert not Path(f"/proc/{sandbox.launched.pid}").exists()


async def test_a_policy_can_be_set_while_paused(start: Start, client: LauncherClient) -> None:
    await start("ipolicy")
    await client.pause("ipolicy")
    await client.set_policy("ipolicy", parse_policy(None, ("0.0.0.0/0",)))
    await client.set_policy("ipolicy", EgressPolicy())
    assert (await client.running())[0].paused


async def test_a_restarted_launcher_knows_who_is_paused(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    paused, running = await start("ipaused"), await start("iruns")
    paused.run(_COUNT)
    await client.pause("ipaused")
    launcher.stop(signal.SIGKILL)
    launcher.start()
    states = {item.sandbox_id: item.paused for item in await client.running()}
    assert states == {"ipaused": True, "iruns": False}
    assert running.run("echo on") == (0, "on\n")
    await client.resume("ipaused")
    first = count(paused)
    await asyncio.sleep(0.2)
    assert count(paused) > first
    await client.pause("ipaused")  # the launcher ends with one that is paused


async def test_pausing_takes_milliseconds(start: Start, client: LauncherClient) -> None:
    await start("ifast")
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        await client.pause("ifast")
        await client.resume("ifast")
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.05, times


async def test_only_what_runs_can_be_paused(client: LauncherClient) -> None:
    for operation in (client.pause, client.resume):
        with pytest.raises(LauncherError, match="inobody does not run"):
            await operation("inobody")
