"""Sandboxes, started for real: what they are, what they cannot do, and that nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shlex
import signal
import socket
import time
import uuid
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from runtime.conftest import LauncherProcess, Start
from sandgate.runtime.client import LauncherClient, LauncherError
from sandgate.runtime.protocol import write_attachment


async def test_a_command_runs_in_a_new_sandbox(start: Start) -> None:
    sandbox = await start("ihello")
    assert sandbox.run("echo hello; hostname", user="user") == (0, "hello\nihello\n")


async def test_the_address_is_told_before_a_sandbox_is_up(start: Start) -> None:
    told: list[IPv4Address] = []
    sandbox = await start("iaddress", on_address=told.append)
    assert told == [sandbox.launched.address]


async def test_root_inside_is_nobody_outside(start: Start) -> None:
    sandbox = await start()
    base = str(0x70000000 + sandbox.launched.slot * 65536)
    shown = sandbox.run("id -u; cat /proc/self/uid_map")[1].split()
    assert shown == ["0", "0", base, "65536"]
    status = Path(f"/proc/{sandbox.launched.pid}/status").read_text()
    assert f"Uid:\t{base}\t" in status


async def test_every_start_is_a_boot_of_its_own(start: Start) -> None:
    shown = Path("/proc/sys/kernel/random/boot_id")
    found = {shown.read_text()}
    for name in ("ifirst", "isecond"):
        sandbox = await start(name)
        text = sandbox.run(f"cat {shown}")[1]
        found.add(text)
        assert str(uuid.UUID(text.strip())) + "\n" == text
        assert sandbox.run(f"echo x > {shown} || cat {shown}")[1].endswith(text)
    assert len(found) == 3


async def test_every_namespace_is_its_own(start: Start) -> None:
    sandbox = await start()
    for kind in ("pid", "mnt", "uts", "ipc", "net", "cgroup", "user"):
        theirs = os.readlink(f"/proc/{sandbox.launched.pid}/ns/{kind}")
        assert theirs != os.readlink(f"/proc/self/ns/{kind}"), kind


FORBIDDEN = [
    "mount -t tmpfs none /mnt",
    "mount -o remount,rw /proc/sys",
    "umount /proc/kcore || umount /sys/kernel",
    "unshare -U true",
    "unshare -m true",
    "unshare -n true",
    "mknod /tmp/disk b 7 0",
    "hostname other",
    "echo 1 > /proc/sys/kernel/core_pattern",
    "echo c > /proc/sysrq-trigger",
    "dmesg",
    "ip link add type dummy",
    "ip addr add 1.2.3.4/32 dev eth0",
    "ip route add 1.2.3.4 via 169.254.1.1",
    "nsenter -t 1 -m true",
    "cat /proc/1/environ",
    "cat /proc/1/maps",
    "readlink /proc/1/exe",
    "ls /proc/1/fd",
    "cat /proc/1/mem",
    "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
    "test -s /proc/kcore",
    "swapoff -a && swapon /swap",
    "date -s 2020-01-01",
    "renice -n -20 1",
]


async def test_root_inside_cannot(start: Start) -> None:
    sandbox = await start()
    done = {attempt: output for attempt in FORBIDDEN if not (output := sandbox.run(attempt))[0]}
    assert done == {}


async def test_capabilities_are_dockers_or_fewer(start: Start) -> None:
    sandbox = await start()
    docker = 0x00000000A80425FB
    lines = sandbox.run(
        "grep Cap /proc/self/status; sudo -u user sudo grep CapBnd /proc/self/status"
    )
    for line in lines[1].splitlines():
        assert int(line.split()[1], 16) & ~docker == 0, line


async def test_the_first_process_survives_signals_from_inside(start: Start) -> None:
    sandbox = await start()
    sandbox.run("kill -TERM 1; kill -KILL 1; kill -STOP 1; kill -INT 1")
    assert sandbox.run("echo alive") == (0, "alive\n")


async def test_nothing_of_the_host_is_visible(start: Start, launcher: LauncherProcess) -> None:
    sandbox = await start()
    code, output = sandbox.run(
        "cat /proc/mounts /proc/self/mountinfo; ps -ef; env; ls -R /dev;"
        "cat /sys/devices/virtual/block/*/loop/backing_file 2> /dev/null; true"
    )
    assert code == 0
    assert str(launcher.settings.data_dir) not in output
    assert "python" not in output
    processes = sandbox.run("ps -e --no-headers | wc -l")[1]
    assert int(processes) < 6


async def test_devices_are_the_harmless_ones(start: Start) -> None:
    sandbox = await start()
    names = sandbox.run("find /dev -type c -o -type b | sort")[1].split()
    assert names == [
        f"/dev/{name}" for name in ("full", "null", "pts/ptmx", "random", "tty", "urandom", "zero")
    ]


_TAKE_ALL = """
import ctypes, os, time
libc = ctypes.CDLL(None)
queue = (ctypes.c_long * 8)(0, 10, 8192)
libc.mq_open.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_void_p)

def terminal():
    try:
        return os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return -1

def taken(take):
    count = 0
    while take(count) >= 0:
        count += 1
    return count

counts = [
    taken(lambda _: libc.inotify_init()),
    taken(lambda n: libc.mq_open(b"/%d" % n, os.O_CREAT | os.O_RDWR, 0o600, queue)),
    taken(lambda _: terminal()),
]
print(*counts, file=open("/tmp/taken.new", "w"))
os.rename("/tmp/taken.new", "/tmp/taken")
time.sleep(60)
"""


async def test_what_the_kernel_counts_is_not_taken_from_others(start: Start) -> None:
    greedy, other = await start("igreedy"), await start("iother")
    script = shlex.quote(_TAKE_ALL)
    greedy.run(f"nohup python3 -c {script} > /dev/null 2>&1 & until cat /tmp/taken; do :; done")
    counts = [int(word) for word in greedy.run("cat /tmp/taken")[1].split()]
    assert min(counts) > 0
    assert counts[2] < 200, "the machine's terminals are bounded for all sandboxes together"
    # The machine's own, and another sandbox's.
    libc = ctypes.CDLL(None, use_errno=True)
    instance = libc.inotify_init()
    assert instance >= 0, os.strerror(ctypes.get_errno())
    os.close(instance)
    others = other.run(f"timeout 3 python3 -c {script}; cat /tmp/taken")[1].split()
    assert [int(word) for word in others] == counts


async def test_buffers_of_sockets_are_bounded(start: Start) -> None:
    sandbox = await start(memory_mb=128)
    fill = (
        "import socket\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "kept, sent = [], 0\n"
        "for _ in range(100):\n"
        "    kept += (socket.create_connection(listener.getsockname()), listener.accept()[0])\n"
        "    for end in kept[-2:]:\n"
        "        end.setblocking(False)\n"
        "        try:\n"
        "            while True: sent += end.send(bytes(65536))\n"
        "        except BlockingIOError: pass\n"
        "print(sent >> 20)"
    )
    code, output = sandbox.run(f'python3 -c "{fill}"')
    assert code != 0 or int(output) <= 64
    assert sandbox.run("echo alive") == (0, "alive\n")


async def test_sudo_works_without_a_password(start: Start) -> None:
    sandbox = await start()
    assert sandbox.run("sudo -n id -u", user="user") == (0, "0\n")


async def test_memory_is_bounded_and_envd_outlives_it(start: Start) -> None:
    sandbox = await start(memory_mb=128)
    code, _ = sandbox.run("python3 -c 'x = bytearray(b\"1\") * (512 << 20)'")
    assert code != 0
    assert sandbox.run("echo alive") == (0, "alive\n")


async def test_shared_memory_is_bounded_below_the_memory(start: Start) -> None:
    sandbox = await start(memory_mb=128)
    assert "No space left" in sandbox.run("head -c 1G /dev/zero > /dev/shm/x")[1]
    assert sandbox.run("du -m /dev/shm/x; echo alive")[1] == "64\t/dev/shm/x\nalive\n"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def process_of(launcher: LauncherProcess, module: str) -> int:
    """The process below the launcher that runs a module of the runtime package."""
    assert launcher.process is not None
    for _ in range(200):
        below = children(launcher.process.pid)
        for pid in [*below, *(pid for child in below for pid in children(child))]:
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                if f"sandgate.runtime.{module}" in words:
                    return pid
        await asyncio.sleep(0.05)
    raise TimeoutError(f"there is no {module}")


async def test_a_cell_that_dies_in_the_pool_is_replaced(
    start: Start, launcher: LauncherProcess
) -> None:
    await start("iwarm")
    await asyncio.sleep(0.5)
    for pid in children(await process_of(launcher, "mould")):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert (await start("ilater")).run("echo fine") == (0, "fine\n")


@pytest.mark.parametrize("module", ["mould", "assembly"])
async def test_the_processes_that_make_cells_may_die(
    start: Start, launcher: LauncherProcess, module: str
) -> None:
    before = await start("ibefore")
    for number in range(3):
        await asyncio.sleep(0.2)
        os.kill(await process_of(launcher, module), signal.SIGKILL)
        for name in ("a", "b"):  # one from the pool, and one that has to be made
            sandbox = await start(f"iafter{number}{name}")
            assert sandbox.run("echo fine") == (0, "fine\n")
    assert before.run("echo still here") == (0, "still here\n")


async def test_whoever_makes_cells_may_die_at_any_moment(
    start: Start, launcher: LauncherProcess, client: LauncherClient
) -> None:
    """While twelve at once wait for theirs; what is half made must not stay either."""
    wanted = asyncio.gather(*(start(f"imany{number}") for number in range(12)))
    for delay in (0.0, 0.01, 0.02):
        await asyncio.sleep(0.3 + delay)
        for module in ("assembly", "mould"):
            if not wanted.done():
                os.kill(await process_of(launcher, module), signal.SIGKILL)
    sandboxes = await wanted
    assert len({sandbox.launched.slot for sandbox in sandboxes}) == 12
    for sandbox in sandboxes:
        assert sandbox.run("echo fine") == (0, "fine\n")
    for number in range(12):
        await client.kill(f"imany{number}")
    assert await client.running() == []


async def test_who_is_ended_while_it_waits_is_refused(start: Start, client: LauncherClient) -> None:
    wanted = [asyncio.create_task(start(f"iwaits{number}")) for number in range(6)]
    await asyncio.sleep(0)  # each has sent its request
    await client.kill("iwaits5")
    with pytest.raises(LauncherError, match="ended"):
        await wanted[5]
    for task in wanted[:5]:
        assert (await task).run("echo fine") == (0, "fine\n")
    assert len(await client.running()) == 5
    assert (await start("iwaits5")).run("echo fine") == (0, "fine\n")


async def test_processes_are_bounded_and_envd_outlives_it(start: Start) -> None:
    sandbox = await start(max_pids=40)
    code, output = sandbox.run(
        """python3 -c '
import os, signal
children = []
try:
    for _ in range(100):
        child = os.fork()
        if child == 0: signal.pause()
        children.append(child)
finally:
    print(len(children))
    for child in children: os.kill(child, 9)
'"""
    )
    assert code == 1
    assert "Resource temporarily unavailable" in output
    assert 20 < int(output.splitlines()[-1]) < 40
    assert sandbox.run("echo alive") == (0, "alive\n")


async def test_a_full_disk_harms_no_other(start: Start) -> None:
    full = await start("ifull")
    other = await start("iother")
    assert "No space left" in full.run("dd if=/dev/zero of=/big bs=1M")[1]
    assert other.run("dd if=/dev/zero of=/small bs=1M count=50 2>/dev/null && echo fine")[1] == (
        "fine\n"
    )
    assert full.run("echo alive") == (0, "alive\n")


async def test_writes_stay_in_the_sandbox(start: Start) -> None:
    first = await start("ifirst")
    second = await start("isecond")
    first.run("echo changed > /etc/os-release; rm /bin/ls; echo x > /new")
    assert "Debian" in second.run("cat /etc/os-release; ls /new")[1]
    third = await start("ithird")
    assert "Debian" in third.run("cat /etc/os-release")[1]


async def test_killing_leaves_nothing(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("igone")
    sandbox.run("nohup sleep 1000 >/dev/null 2>&1 & nohup setsid sleep 1000 >/dev/null 2>&1 &")
    pids = Path(f"/proc/{sandbox.launched.pid}/task/{sandbox.launched.pid}/children")
    children = [int(pid) for pid in pids.read_text().split()]
    assert children
    await client.kill("igone")
    for pid in (sandbox.launched.pid, *children):
        assert not Path(f"/proc/{pid}").exists()
    assert await client.running() == []
    slot = sandbox.launched.slot
    group = f"sandgate/{launcher.settings.node_id}/s{slot}"
    assert not [*Path("/sys/fs/cgroup").glob(group), *Path("/sys/fs/cgroup").glob(f"*/{group}")]
    assert not (launcher.settings.data_dir / "cells" / f"{slot}.json").exists()
    await client.kill("igone")  # again, harmlessly


async def test_a_sandbox_that_ends_by_itself_is_reported(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("iends")
    os.kill(sandbox.launched.pid, signal.SIGKILL)
    assert await asyncio.wait_for(client.exits.get(), 5) == "iends"  # type: ignore[attr-defined]
    assert await client.running() == []


@pytest.mark.parametrize(
    ("request_", "attachment"),
    [
        (b'{"id": 1e999, "op": "running"}', None),
        (b"[" * 100_000, None),
        (b'{"id": 1, "op": "set_policy", "sandbox_id": "i"}', b'{"a":' + b"[" * 200_000),
        (
            b'{"id": 1, "op": "set_policy", "sandbox_id": "i"}',
            b'{"allow": [], "deny": [], "names": [1]}',
        ),
    ],
)
async def test_no_request_ends_the_launcher(
    client: LauncherClient, launcher: LauncherProcess, request_: bytes, attachment: bytes | None
) -> None:
    fds = [] if attachment is None else [write_attachment(attachment)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(launcher.socket_path))
        socket.send_fds(connection, [request_], fds)
        assert b"malformed request" in connection.recv(65536)
    for fd in fds:
        os.close(fd)
    assert await client.running() == []
    assert launcher.process is not None and launcher.process.poll() is None


async def test_connections_are_bounded(client: LauncherClient, launcher: LauncherProcess) -> None:
    with contextlib.ExitStack() as opened:
        for _ in range(100):
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
            connection.connect(str(launcher.socket_path))
        connection.settimeout(10)
        assert connection.recv(1) == b""
        assert await client.running() == []


async def test_ids_are_not_given_twice(start: Start) -> None:
    await start("itwice")
    with pytest.raises(LauncherError, match="itwice exists"):
        await start("itwice")


async def test_an_unknown_template_is_named(start: Start) -> None:
    with pytest.raises(LauncherError, match="template nosuch is not built"):
        await start(template="nosuch")
    assert (await start("iafter")).run("echo fine") == (0, "fine\n")


async def test_a_restarted_launcher_adopts_what_runs(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("istays")
    sandbox.run("echo kept > /tmp/file; sleep 1000 > /dev/null 2>&1 &")
    launcher.stop(signal.SIGKILL)
    assert sandbox.run("cat /tmp/file") == (0, "kept\n")
    launcher.start()
    assert await client.running() == [sandbox.launched]
    assert sandbox.run("cat /tmp/file; pgrep -c sleep") == (0, "kept\n1\n")
    fresh = await start("ifresh")
    assert fresh.launched.slot != sandbox.launched.slot
    await client.kill("istays")
    status = Path(f"/proc/{sandbox.launched.pid}/status")
    # It was nobody's child any more, so it may wait to be reaped by the machine's init.
    assert not status.exists() or "State:\tZ" in status.read_text()


async def test_creating_takes_milliseconds(start: Start, client: LauncherClient) -> None:
    await start("iwarm")
    await asyncio.sleep(0.5)
    times = []
    for number in range(5):
        begun = time.perf_counter()
        await start(f"itimed{number}")
        times.append(time.perf_counter() - begun)
        await asyncio.sleep(0.2)  # the pool refills
    assert min(times) < 0.05, times


async def test_templates_that_are_just_being_built_anew_do_not_harm_the_launcher(
    start: Start, launcher: LauncherProcess
) -> None:
    """A template of which the one below is gone already cannot be used, and that is all."""
    built = launcher.settings.data_dir / "templates"
    whole = built.readlink()
    half = launcher.settings.data_dir / "half"
    half.mkdir()
    for template in whole.glob("[!.]*/"):
        (half / template.name).mkdir()
        text = (template / "manifest.json").read_text()
        if template.name == "base":
            text = text.replace(json.loads(text)["build_id"], "another")
        (half / template.name / "manifest.json").write_text(text)
        (half / template.name / "rootfs").symlink_to(template / "rootfs")
    sandbox = await start("ibefore")
    built.unlink()
    built.symlink_to(half)
    with pytest.raises(LauncherError, match="code-interpreter-v1 is not built on this node"):
        await start("ihalf", template="code-interpreter-v1")
    for number in range(4):  # the first ones are taken from the pool
        assert (await start(f"iduring{number}")).run("echo here") == (0, "here\n")
    assert launcher.process is not None and launcher.process.poll() is None
    assert sandbox.run("echo still here") == (0, "still here\n")
    built.unlink()
    built.symlink_to(whole)
    assert (await start("iafter")).run("echo again") == (0, "again\n")
