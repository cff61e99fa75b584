"""A machine that can lose its power: what is left of a node then, and nothing more."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from internet import UPSTREAM_DNS, Internet, namespaces
from internet.held import Held
from internet.node import Node

_SIZE = 6 << 30
_SHUTDOWN = 0x8004587D
_WITHOUT_THE_LOG = 2
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_SECONDS = 30.0


class Machine(Held):
    """A node whose data directory is a disk of its own.

    :meth:`lose_power` leaves what had reached that disk: no process, namespace, mount, control
    group, loop device or kernel rule of the node, and no byte that was not synced. At the next
    start it is another boot, with another id, in another network namespace.
    """

    def __init__(self, world: Internet, settings: dict[str, object]) -> None:
        self._world = world
        limits = {"cpu_count": 1, "memory_mb": 256, "disk_mb": 128, "max_pids": 128}
        settings = {"upstream_dns": [UPSTREAM_DNS], "disk_reserve_mb": 64, **limits, **settings}
        self._boots = 0
        self.node = Node(self._boot(), settings)
        self._image = self.node.directory / "disk"

    def open(self) -> None:
        """Make the disk, and start the node on it."""
        with self._image.open("wb") as image:
            image.truncate(_SIZE)
        namespaces.run("mkfs.ext4", "-q", "-F", str(self._image))
        self._mount()
        self.node.prepare()
        self.node.start()

    def close(self) -> None:
        """End the node, and take away the disk."""
        try:
            if self.node.namespace is not None:
                self.node.stop()
        finally:
            self._unmount()
            self.node.close()

    def lose_power(self) -> None:
        """Stop everything in the middle of what it does."""
        processes = self.node.processes()
        disk = os.open(self.node.data_dir, os.O_RDONLY)
        try:
            # From here on nothing reaches the disk, not even what the file system was about to.
            fcntl.ioctl(disk, _SHUTDOWN, struct.pack("I", _WITHOUT_THE_LOG))
        finally:
            os.close(disk)
        _end(processes)
        self.node.bury()
        until = time.monotonic() + _SECONDS
        while groups := node_groups(self.node.node_id):
            assert time.monotonic() < until, groups
            for group in (*(child for each in groups for child in _children(each)), *groups):
                _clear(group)
            time.sleep(0.02)
        assert self.node.namespace is not None
        namespaces.delete(self.node.namespace)
        self.node.namespace = None
        self._pull_out()

    def start(self) -> None:
        """Boot, and run `sandgate serve`."""
        self._mount()
        self.node.namespace = self._boot()
        # All that the node does sees the id of this boot.
        identity = self.node.directory / f"boot{self._boots}"
        identity.write_text(f"{uuid.uuid4()}\n")
        script = f'mount --bind {identity} {_BOOT_ID} && exec "$@"'
        self.node.launch = ("unshare", "--mount", "sh", "-c", script, "sh")
        self.node.start()

    @contextlib.contextmanager
    def disk_inserted(self) -> Iterator[None]:
        """Have the disk at its place while the machine is off."""
        self._mount()
        try:
            yield
        finally:
            self._unmount()

    def _boot(self) -> str:
        self._boots += 1
        return self._world.attach(f"boot{self._boots}")

    def _mount(self) -> None:
        self.node.data_dir.mkdir(exist_ok=True)
        namespaces.run("mount", "-o", "loop", str(self._image), str(self.node.data_dir))

    def _unmount(self) -> None:
        while os.path.ismount(self.node.data_dir):
            namespaces.run("umount", "--lazy", str(self.node.data_dir))

    def _pull_out(self) -> None:
        """Whoever made a mount namespace meanwhile has the file system that was shut down mounted
        there, and the same disk would be the same file system: so what is on it moves."""
        self._unmount()
        moved = self._image.with_suffix(".moved")
        namespaces.run("cp", "--sparse=always", str(self._image), str(moved))
        moved.replace(self._image)


def node_groups(node_id: str) -> list[Path]:
    """A node's control groups, one in each hierarchy."""
    top = Path("/sys/fs/cgroup")
    return [path for depth in ("", "*/") for path in top.glob(f"{depth}sandgate/{node_id}")]


def _children(group: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return [path for path in group.iterdir() if path.is_dir()]
    return []


def _clear(group: Path) -> None:
    """Kill what is in it; remove it if nothing is."""
    with contextlib.suppress(OSError):
        _end({int(pid) for pid in (group / "cgroup.procs").read_text().split()})
    # In version 1 the dead of a frozen group die when it is thawed.
    for name, word in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            (group / name).write_text(word)
    with contextlib.suppress(OSError):
        group.rmdir()


def _end(processes: set[int]) -> None:
    for pid in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
