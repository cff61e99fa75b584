"""What a sandbox cannot see, reach or take."""

from __future__ import annotations

import ctypes
import os
import shlex
from pathlib import Path

from runtime.conftest import LauncherProcess, Start


async def test_root_inside_is_nobody_outside(start: Start) -> None:
    sandbox = await start()
    base = str(0x70000000 + sandbox.launched.slot * 65536)
    shown = sandbox.run("id -u; cat /proc/self/uid_map")[1].split()
    assert shown == ["0", "0", base, "65536"]
    status = Path(f"/proc/{sandbox.launched.pid}/status").read_text()
    assert f"Uid:\t{base}\t" in status


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


async def test_memory_is_bounded_and_envd_outlives_it(start: Start) -> None:
    sandbox = await start(memory_mb=128)
    code, _ = sandbox.run("python3 -c 'x = bytearray(b\"1\") * (512 << 20)'")
    assert code != 0
    assert sandbox.run("echo alive") == (0, "alive\n")


async def test_shared_memory_is_bounded_below_the_memory(start: Start) -> None:
    sandbox = await start(memory_mb=128)
    assert "No space left" in sandbox.run("head -c 1G /dev/zero > /dev/shm/x")[1]
    assert sandbox.run("du -m /dev/shm/x; echo alive")[1] == "64\t/dev/shm/x\nalive\n"


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
