"""What code in a sandbox can and cannot do to its machine, also as root."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from e2b import Sandbox

from e2e.box import Box, read, until

DOCKER_CAPABILITIES = 0xA80425FB
"""The set that Docker gives by default."""

DEVICES = {
    *("null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "mqueue"),
    *("fd", "stdin", "stdout", "stderr", "console", "core"),
}

AS_ROOT_IMPOSSIBLE = [
    "mount -t tmpfs none /mnt",
    "mount -t proc none /mnt",
    "mount --bind / /mnt",
    "mount -o remount,rw /proc/sys",
    "umount /proc",
    "unshare --mount true && unshare --mount mount -t tmpfs none /mnt",
    "unshare --user --map-root-user --mount mount -t tmpfs none /mnt",
    "unshare --net ip link add d0 type dummy && unshare --net true",
    "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
    "ip link add d0 type dummy",
    "ip address add 10.9.9.9/32 dev eth0",
    "ip link set eth0 down",
    "sysctl -w net.ipv4.ip_forward=1",
    "echo 1 > /proc/sys/kernel/sysrq",
    "echo b > /proc/sysrq-trigger",
    "head -c 1 /proc/kcore",
    "cat /proc/keys | grep .",
    "ls -A /sys/firmware | grep .",
    "echo 1 > /sys/kernel/mm/ksm/run",
    "dmesg",
    "date -s 2001-01-01",
    "hostname elsewhere",
    "reboot -f",
    "swapon /dev/null",
    "nsenter -t 1 -n -m true && ls /var/lib/sandgate",
    "ls /sys/fs/cgroup/ && mkdir /sys/fs/cgroup/mine",
    "modprobe dummy",
    "chroot /proc/1/root/../../.. ls /var/lib/sandgate",
]

# Name, number on x86-64, and arguments that would do no harm if it worked.
SYSTEM_CALLS = {
    "bpf": (321, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "add_key": (248, 0, 0, 0),
    "keyctl": (250, 0, 0, 0),
    "userfaultfd": (323, 0, 0, 0),
    "iopl": (172, 3, 0, 0),
    "acct": (163, 0, 0, 0),
    "pivot_root": (155, 0, 0, 0),
    "fsopen": (430, 0, 0, 0),
    "move_mount": (429, 0, 0, 0),
    "io_uring_setup": (425, 0, 0, 0),
    "quotactl": (179, 0, 0, 0),
}


_BOMB = """
import os, signal
children = []
try:
    while True:
        child = os.fork()
        if child == 0:
            signal.pause()
        children.append(child)
except OSError as error:
    print(len(children), error)
for child in children:
    os.kill(child, signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("whoami", "user"),
        ("id -u; id -g; pwd; echo $HOME $USER", "1000\n1000\n/home/user\n/home/user user"),
        ("sudo -n id -u", "0"),
        ("ls -A /etc/skel | sort", ".bash_logout\n.bashrc\n.profile"),
        ("ls -d ~/.bash_logout ~/.bashrc ~/.profile | wc -l", "3"),
        ("stat -c %U:%G ~ ~/.bashrc | uniq", "user:user"),
        ("echo $E2B_SANDBOX", "true"),
        ("grep -c processor /proc/cpuinfo > /dev/null && echo readable", "readable"),
        ("cat /proc/1/comm > /dev/null; ps -o pid= -p 1 | tr -d ' '", "1"),
        ("df --output=target / | tail -1", "/"),
        ("touch /usr/x 2>&1 | grep -c denied; sudo touch /usr/x && echo root may", "1\nroot may"),
    ],
)
def test_inside_it_is_an_ordinary_machine(shared_box: Box, command: str, output: str) -> None:
    assert shared_box.sh(command).stdout.strip() == output


@pytest.mark.parametrize(
    "program",
    [
        *("python", "python3", "pip", "node", "git", "curl", "ps", "ip", "dig", "openssl"),
        *("sudo", "bash", "apt-get", "update-ca-certificates"),
    ],
)
def test_a_program_is_there(shared_box: Box, program: str) -> None:
    assert shared_box.sh(f"command -v {program} || sudo sh -c 'command -v {program}'").stdout


@pytest.mark.parametrize("command", AS_ROOT_IMPOSSIBLE)
def test_root_inside_cannot(shared_box: Box, command: str) -> None:
    done = shared_box.sh(command, user="root")
    assert done.exit_code != 0, done.stdout


def test_root_inside_gets_no_further_by_system_calls(shared_box: Box) -> None:
    code = (
        "import ctypes, json; libc = ctypes.CDLL(None, use_errno=True)\n"
        f"calls = {SYSTEM_CALLS}\n"
        "print(json.dumps({n: [libc.syscall(*c), ctypes.get_errno()] for n, c in calls.items()}))"
    )
    shared_box.sandbox.files.write("/home/user/calls.py", code)
    import json

    results = json.loads(shared_box.sh("python3 /home/user/calls.py", user="root").stdout)
    permitted = {n: r for n, r in results.items() if r[0] != -1 or r[1] not in (1, 38)}
    assert not permitted, "neither EPERM nor ENOSYS"


@pytest.mark.parametrize("user", ["root", "user"])
def test_capabilities_are_dockers_or_fewer(shared_box: Box, user: str) -> None:
    status = shared_box.sh("grep -E '^(Cap|Seccomp:)' /proc/self/status", user=user).stdout.split()
    fields = dict(zip(status[::2], status[1::2], strict=True))
    for kind in ("CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"):
        assert int(fields[kind], 16) & ~DOCKER_CAPABILITIES == 0, kind
    if user == "user":
        assert int(fields["CapEff:"], 16) == 0
    assert fields["Seccomp:"] == "2"


def test_root_inside_is_nobody_outside(shared_box: Box) -> None:
    inside, outside, _ = shared_box.sh("cat /proc/self/uid_map").stdout.split()[:3]
    assert inside == "0" and int(outside) >= 100_000


def test_no_host_process_is_visible(shared_box: Box) -> None:
    processes = shared_box.sh("ps -eo pid=", user="root").stdout.split()
    assert "1" in processes and len(processes) < 30
    assert not shared_box.sh(f"cat /proc/{os.getpid()}/cmdline | grep -a pytest").stdout


def test_no_host_file_is_visible(shared_box: Box, tmp_path: Path) -> None:
    marker = tmp_path / "marker-of-the-host"
    marker.write_text("secret")
    tmp_path.chmod(0o755)
    for root in ("", "/proc/1/root", "/proc/self/root"):
        assert shared_box.sh(f"cat {root}{marker}", user="root").exit_code != 0
    search = "timeout 25 find / -xdev -name 'marker-of-the-host*' -o -name api_key 2>/dev/null"
    assert not shared_box.sh(search, user="root").stdout
    assert shared_box.sh("ls /run/sandgate /var/lib/sandgate", user="root").exit_code != 0


def test_no_host_device_is_visible(shared_box: Box) -> None:
    assert set(shared_box.sh("ls /dev").stdout.split()) <= DEVICES
    assert not shared_box.sh("find / -xdev -type b 2>/dev/null", user="root").stdout


def test_each_sandbox_has_its_own_host_name(shared_box: Box, other_box: Box) -> None:
    names = {box.sh("hostname").stdout.strip() for box in (shared_box, other_box)}
    assert len(names) == 2 and socket.gethostname() not in names
    assert shared_box.sh("getent hosts $(hostname)").exit_code == 0


def test_each_sandbox_has_its_own_namespaces(shared_box: Box, other_box: Box) -> None:
    kinds = ("pid", "mnt", "uts", "ipc", "net", "cgroup", "user")
    command = "cd /proc/self/ns && readlink " + " ".join(kinds)
    one, two = (box.sh(command).stdout.split() for box in (shared_box, other_box))
    host = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
    for index, kind in enumerate(kinds):
        assert len({one[index], two[index], host[index]}) == 3, kind


def test_no_secret_of_the_node_is_readable(shared_box: Box) -> None:
    key = os.environ["E2B_API_KEY"]
    shared_box.sandbox.files.write("/home/user/pattern", key[4:20])
    search = "cat /proc/*/environ /proc/*/cmdline 2>/dev/null | grep -acf /home/user/pattern"
    # The search itself reads its pattern from a file, so its own arguments do not match.
    assert shared_box.sh(search, user="root").stdout.strip() == "0"


def test_memory_is_limited_and_the_sandbox_lives_on(sandboxes: Callable[..., Sandbox]) -> None:
    box = Box(sandboxes())
    done = box.sh("python3 -c 'x = bytearray(2_000_000_000); print(len(x))'")
    assert done.exit_code != 0 and "2000000000" not in done.stdout
    assert box.sh("head -c 2G /dev/zero > /dev/shm/x").exit_code != 0
    assert box.sh("rm -f /dev/shm/x; echo alive").stdout == "alive\n"


def test_processes_are_limited_and_the_sandbox_lives_on(
    sandboxes: Callable[..., Sandbox], other_box: Box
) -> None:
    box = Box(sandboxes())
    box.sandbox.files.write("/home/user/bomb.py", _BOMB)
    forked, error = box.sh("python3 bomb.py").stdout.split(" ", 1)
    assert 100 < int(forked) <= 256 and "Resource temporarily unavailable" in error
    assert other_box.sh("echo alive").stdout == "alive\n"
    assert box.sh("echo alive").stdout == "alive\n"


def test_the_disk_is_limited_and_only_its_own_sandbox_notices(
    sandboxes: Callable[..., Sandbox], other_box: Box
) -> None:
    box = Box(sandboxes())
    done = box.sh("dd if=/dev/zero of=/home/user/fill bs=1M count=2000", timeout=60)
    assert done.exit_code != 0 and "No space left" in done.stderr
    assert other_box.sh("dd if=/dev/zero of=/home/user/some bs=1M count=50").exit_code == 0
    assert box.sh("rm /home/user/fill && echo again > /home/user/x && cat /home/user/x").stdout
    other_box.sh("rm /home/user/some")


def test_the_cpu_is_limited(shared_box: Box) -> None:
    burn = "timeout 2 sh -c 'while :; do :; done'"
    done = shared_box.sh(f"bash -c 'time ({burn} & {burn} & wait)' 2>&1").stdout
    times = dict(line.split() for line in done.splitlines() if line.startswith(("user", "sys")))
    used = sum(float(value.split("m")[1].rstrip("s")) for value in times.values())
    assert used < 2.6, "two busy processes for 2 s on one CPU"


def test_limits_are_what_the_machine_looks_like(shared_box: Box) -> None:
    assert int(shared_box.sh("df --output=size -m / | tail -1").stdout) <= 600


def test_one_sandbox_cannot_signal_or_read_another(shared_box: Box, other_box: Box) -> None:
    other_box.sh("echo private > /tmp/note")
    assert shared_box.sh("cat /tmp/note").exit_code != 0
    assert shared_box.sh("pgrep -f note", user="root").exit_code != 0


def test_the_machine_runs_no_sandbox_process_as_root(shared_box: Box) -> None:
    handle = shared_box.sandbox.commands.run("sudo sleep 4321", background=True)
    owners: set[int] = set()

    def found() -> bool:
        owners.update(_owners_of_the_sleep())  # a process that just becomes another has no name
        return bool(owners)

    try:
        until(found)
        assert min(owners) >= 100_000
    finally:
        handle.kill()


def _owners_of_the_sleep() -> set[int]:
    commands = [path for path in Path("/proc").glob("[0-9]*/cmdline") if "4321" in read(path)]
    return {path.stat().st_uid for path in commands}
