"""What a crash leaves is found and removed, and nothing that lives is touched."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from internet import namespaces
from sandgate.network.config import FIRST_INDEX
from sandgate.runtime.cgroups import Cgroups, find_cgroups
from sandgate.runtime.images import Images
from sandgate.runtime.leaks import Leaks, Reaper
from sandgate.settings import Settings
from supervisor.home import Home, up

pytestmark = pytest.mark.timeout(180)

_SLOT = 900
_CREATE = "from e2b import Sandbox; print(Sandbox.create(timeout=300).sandbox_id)"
_USE = """
import os
from e2b import Sandbox
print(Sandbox.connect(os.environ["ID"]).commands.run("echo alive").stdout)
"""


class Debris:
    """Leftovers as of a sandbox in a slot that nobody has."""

    def __init__(self, home: Home) -> None:
        self.home = home
        settings = Settings(data_dir=home.data)
        self.groups = find_cgroups(settings.node_id, home.data / "cgroup")
        self.disk = home.data / "disks" / "running" / f"{_SLOT}.img"
        self.record = home.data / "cells" / f"{_SLOT}.json"
        self.mount = home.data / "scratch" / "left"
        self.process: subprocess.Popen[bytes] | None = None

    def leave_link(self) -> None:
        namespaces.run(
            *("ip", "-n", self.home.namespace, "link", "add", f"sg{_SLOT}"),
            *("index", str(FIRST_INDEX + _SLOT), "type", "veth", "peer", "name", "left0"),
        )

    def leave(self) -> None:
        """A group with a process, a disk with a loop device, a record and a mount."""
        self.groups.create(f"s{_SLOT}")
        self.process = subprocess.Popen(["sleep", "300"])
        for path in self.groups.join_paths(f"s{_SLOT}"):
            Path(path).write_text(str(self.process.pid))
        with self.disk.open("wb") as file:
            file.truncate(1 << 20)
        namespaces.run("losetup", "--find", str(self.disk))
        self.record.write_text(json.dumps({"pid": self.process.pid, "started": 1}))
        self.mount.mkdir(parents=True)
        namespaces.run("mount", "-t", "tmpfs", "none", str(self.mount))

    def kinds(self) -> set[str]:
        return {"control group", "disk", "loop device", "record", "mount"}

    def left(self) -> list[str]:
        """What of it is there."""
        found = [str(path) for path in (self.disk, self.record) if path.exists()]
        found += [name for name in self.groups.names() if name == f"s{_SLOT}"]
        for path in Path("/sys/block").glob("loop*/loop/backing_file"):
            with contextlib.suppress(OSError):
                if str(self.disk) in path.read_text():
                    found.append(path.parts[3])
        if str(self.mount) in Path("/proc/self/mountinfo").read_text():
            found.append("mount")
        return found

    def clean(self) -> None:
        """Whatever a failed test did not see removed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        for name in self.left():
            if name.startswith("loop"):
                namespaces.run("losetup", "--detach", f"/dev/{name}")
            elif name == "mount":
                namespaces.run("umount", str(self.mount))
        with contextlib.suppress(FileNotFoundError):
            self.groups.remove(f"s{_SLOT}")


@pytest.fixture
def debris(home: Home) -> Iterator[Debris]:
    made = Debris(home)
    yield made
    made.clean()


def doctor(home: Home, *options: str) -> tuple[int, set[str]]:
    """The exit status and the kinds of what was found."""
    done = home.sandgate("doctor", "--leaks", "--json", *options)
    assert done.returncode in (0, 1), done.stderr + done.stdout
    rows = json.loads(done.stdout)
    assert all(row["removed"] is ("--fix" in options) for row in rows), rows
    return done.returncode, {row["kind"] for row in rows}


def haproxy(home: Home, command: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(str(home.data / "run" / "haproxy.sock"))
        sock.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()


@pytest.mark.long
def test_leaks_are_found_and_removed_while_sandboxes_run_and_after(
    home: Home, debris: Debris
) -> None:
    up(home)
    variables = dict(
        line.removeprefix("export ").split("=", 1)
        for line in home.sandgate("env").stdout.splitlines()
    )
    variables["ID"] = home.python(_CREATE, **variables)
    assert home.sandgate("doctor", "--leaks").stdout == "nothing is left over\n"
    debris.leave()
    debris.leave_link()
    (reference,) = (line for line in haproxy(home, "show map").splitlines() if "routes" in line)
    haproxy(home, f"add map #{reference.split()[0]} ileftover 198.18.0.99")
    wanted = debris.kinds() | {"network link", "route"}
    assert doctor(home) == (1, wanted)
    assert len(debris.left()) == len(debris.kinds())
    assert doctor(home, "--fix") == (0, wanted)
    assert debris.process is not None and debris.process.wait(5) == -9
    assert debris.left() == [] and doctor(home) == (0, set())
    assert home.python(_USE, **variables) == "alive"

    # After a crash of all of the node; what runs will be taken over.
    debris.process = None
    for process in sorted(home.processes().items(), key=lambda item: item[0] != "supervisor"):
        process[1].send(signal.SIGKILL)
    debris.mount.rmdir()
    debris.leave()
    status, kinds = doctor(home, "--fix")
    # A cell that was prepared and nobody's died with the launcher, and left its things, too.
    assert status == 0 and debris.kinds() <= kinds
    assert debris.left() == [] and doctor(home) == (0, set())
    up(home)
    assert home.python(_USE, **variables) == "alive"
    assert home.sandgate("down").returncode == 0
    assert doctor(home) == (0, set())

    # What a launcher leaves that was killed before it had anything to end.
    debris.groups.setup()
    assert doctor(home) == (1, {"control group"})
    assert doctor(home, "--fix") == (0, {"control group"})
    assert doctor(home) == (0, set())


def groups_of(directory: Path) -> Cgroups:
    made = find_cgroups(f"t{time.monotonic_ns():x}", directory)
    made.setup()
    return made


def test_the_reaper_removes_what_it_sees_twice_and_nobody_has(tmp_path: Path) -> None:
    groups = groups_of(tmp_path)
    images = Images(tmp_path)
    images.setup()
    live = {1}
    leaks = Leaks(data_dir=tmp_path, cgroups=groups, images=images, network=None)
    reaper = Reaper(leaks, lambda: live, period=0)
    try:
        for slot in (1, 2, 3):
            groups.create(f"s{slot}")
            images.running(slot).touch()
        reaper.work()
        assert groups.names() == {"s1", "s2", "s3"}
        live.add(3)  # it was being made
        reaper.work()
        assert groups.names() == {"s1", "s3"}
        assert images.running(1).exists() and not images.running(2).exists()
        live.discard(3)
        reaper.work()
        assert groups.names() == {"s1", "s3"}, "seen only once since"
        reaper.work()
        assert groups.names() == {"s1"}
    finally:
        for name in groups.names():
            groups.remove(name)
        groups.teardown()
