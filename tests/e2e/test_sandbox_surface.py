"""What of the machine code in a sandbox can see and touch: what the known probes look at."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from e2e.box import Box

OF_THE_MACHINE = (
    # Hidden by Docker as well.
    *("/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list"),
    *("/sys/devices/virtual/powercap", "/sys/firmware"),
    # By us in addition.
    *("/proc/bus", "/proc/cmdline", "/proc/diskstats", "/proc/fs", "/proc/irq", "/proc/kallsyms"),
    *(
        "/proc/kmsg",
        "/proc/kpagecount",
        "/proc/modules",
        "/proc/partitions",
        "/proc/pressure",
        "/proc/vmallocinfo",
        "/sys/block",
    ),
    *("/sys/class/bdi", "/sys/class/block", "/sys/dev", "/sys/devices/virtual/bdi"),
    *("/sys/devices/virtual/block", "/sys/fs", "/sys/kernel", "/sys/module", "/sys/power"),
)
MASK = "/null"
"""What is mounted over a file that is hidden: the sandbox's own /dev/null."""
SANDBOX_DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "pts/ptmx"}
SILENT = "import socket,time;s=socket.socket(16,2,15);s.bind((0,1));print('hears')"


@pytest.fixture(scope="module", params=["root", "user"])
def seen(request: pytest.FixtureRequest, shared_box: Box) -> dict[str, Any]:
    """What the program sees, as root and as the ordinary user."""
    program = (Path(__file__).parent / "surface.py").read_text()
    shared_box.sandbox.files.write("/tmp/surface.py", program)
    done = shared_box.sh("python3 /tmp/surface.py", user=request.param)
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_system_calls_that_reach_the_machine_are_refused(seen: dict[str, Any]) -> None:
    assert seen["calls"] == {}


def test_only_ordinary_families_of_sockets_exist(seen: dict[str, Any]) -> None:
    assert seen["families"] == [
        socket.AF_UNIX,
        socket.AF_INET,
        socket.AF_INET6,
        socket.AF_NETLINK,
    ]


def test_netlink_tells_of_routes_and_sockets_only(seen: dict[str, Any]) -> None:
    route, sock_diag, audit = 0, 4, 9
    assert set(seen["netlink"]) <= {route, sock_diag, audit}


def test_device_events_of_the_machine_are_not_heard(shared_box: Box) -> None:
    done = shared_box.sh(f'python3 -c "{SILENT}"', user="root")
    assert "hears" not in done.stdout and "Function not implemented" in done.stderr


def test_programs_inherit_no_descriptor(seen: dict[str, Any]) -> None:
    assert set(seen["descriptors"]) <= {"0", "1", "2"}, seen["descriptors"]


def test_the_first_process_can_be_neither_read_nor_changed(seen: dict[str, Any]) -> None:
    assert (seen["init"], seen["init_to_write"], seen["traces_init"]) == ([], [], False)


def test_nothing_of_the_machine_can_be_written(seen: dict[str, Any]) -> None:
    masked = {line.split()[4] for line in seen["mounts"] if line.split()[3] == MASK}
    assert set(seen["writable"]) <= masked


def test_there_are_no_devices_but_the_harmless_ones(seen: dict[str, Any]) -> None:
    terminals = {path for path in seen["devices"] if path.startswith("/dev/pts/")}
    assert set(seen["devices"]) - terminals <= {f"/dev/{name}" for name in SANDBOX_DEVICES}


def test_mounts_of_files_have_no_devices(seen: dict[str, Any]) -> None:
    for line in seen["mounts"]:
        root, where, options = line.split()[3:6]
        assert "nodev" in options or where in ("/dev", "/dev/pts") or root == MASK, line
        assert "nosuid" in options or where == "/", line
        if where.startswith("/sys"):
            assert options.startswith("ro"), line


def test_the_c_library_knows_the_number_of_its_thread(seen: dict[str, Any]) -> None:
    assert seen["priority_mutex"] == 0


@pytest.mark.parametrize("path", OF_THE_MACHINE)
def test_what_tells_of_the_machine_is_hidden(shared_box: Box, path: str) -> None:
    look = f"if [ -d {path} ]; then ls -A {path}; else head -c 100 {path}; fi 2>/dev/null"
    assert shared_box.sh(look, user="root").stdout == ""


def test_an_interpreter_gives_its_sandbox_no_way_to_what_it_was_forked_from(
    sandboxes: Callable[..., Sandbox],
) -> None:
    box = Box(sandboxes(template="code-interpreter-v1"))
    # The interpreter starts with the first connection, after this.
    trap = "rm /dev/null; touch /tmp/trap; chmod 666 /tmp/trap; ln -s /tmp/trap /dev/null"
    start = "curl -s --retry 20 --retry-connrefused -o /tmp/answer localhost:49999/health"
    assert box.sh(f"{trap}; {start}", user="root").exit_code == 0
    servers = box.sh("pgrep python3", user="root").stdout.split()
    assert len(servers) >= 2, "the nursery and the server"
    for pid in servers:
        listing = box.sh(f"ls -l /proc/{pid}/fd", user="root").stdout
        assert "/tmp/trap" not in listing and "layer" not in listing
        written = box.sh(f"echo x >> /proc/{pid}/exe", user="root")
        assert written.exit_code != 0 and "Read-only file system" in written.stderr
        kinds = "cgroup ipc mnt net pid user uts"
        both = (f"cd /proc/{one}/ns && readlink {kinds}" for one in (pid, "self"))
        server, own = (box.sh(command, user="root").stdout for command in both)
        assert server == own != ""
        assert box.sh(f"grep -c 'Seccomp:.2' /proc/{pid}/status").stdout == "1\n"
