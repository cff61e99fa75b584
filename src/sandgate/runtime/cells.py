"""Making and removing cells: everything a sandbox consists of, from the launcher's side.

A cell takes a slot, and the slot names all of it: its address, its ids, its control group, its
network device. What the kernel frees by itself when the last process dies (namespaces, mounts, the
disk with its loop device, the network device) is not tracked; the rest is removed by
:meth:`CellFactory.remove`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sandgate.network import HostNetwork, Links
from sandgate.policy import EgressPolicy
from sandgate.runtime import disks, linux, rootfs, userns
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Door
from sandgate.runtime.mould import Mould, Order
from sandgate.runtime.protocol import Launched, Usage

_REST_S = 3.0
"""How long a slot rests before reuse, so that late packets cannot reach the next sandbox."""
_SPARE_SLOTS = 64
_DRAFT = ".new"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)


class NoSlotError(RuntimeError):
    """All slots are taken or rest."""


class State(Enum):
    """Where a cell is in its life."""

    PREPARING = "preparing"
    READY = "ready"
    STARTING = "starting"
    RUNNING = "running"


@dataclass(frozen=True, slots=True)
class CellKind:
    """Cells of one kind are interchangeable until they are started."""

    template: str
    disk_mb: int
    memory_mb: int


@dataclass(frozen=True, slots=True)
class Base:
    """What cells of a template stand on."""

    layers: tuple[Path, ...]
    """Topmost first."""
    interpreter: bool
    """Whether they can run code at the interpreter's port."""


@dataclass(slots=True, eq=False)
class Cell:
    """One cell. `sandbox_id` and `policy` are known once it is somebody's."""

    slot: int
    pid: int
    pidfd: int
    kind: CellKind | None
    state: State
    channel: socket.socket | None = None
    disk: int | None = None
    """The file system's root; kept to be able to abandon it."""
    sandbox_id: str | None = None
    policy: EgressPolicy = field(default_factory=EgressPolicy)
    paused: bool = False
    """Frozen, or to be frozen."""
    parked: bool = False
    """Its disk outlives it."""
    base: Base | None = None
    """None: adopted."""
    door: Door | None = None
    started: int | None = None
    """:func:`start_time` of its first process, once it was asked for."""

    def close(self) -> None:
        """Close the launcher's descriptors of this cell."""
        os.close(self.pidfd)
        if self.channel is not None:
            self.channel.close()
        if self.disk is not None:
            os.close(self.disk)


class Slots:
    """Numbers of cells."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._fresh = deque(range(count))
        self._used: deque[tuple[int, float]] = deque()
        """With the time at which each has rested."""

    def take(self) -> int:
        """A rested slot, rather one that has a user namespace already. Raises NoSlotError."""
        if self._used and self._used[0][1] <= time.monotonic():
            return self._used.popleft()[0]
        if self._fresh:
            return self._fresh.popleft()
        raise NoSlotError(
            f"all {self._count} addresses are taken, or rest for {_REST_S:g} s after use; end some "
            "sandboxes, or set a wider address_range"
        )

    def reserve(self, slot: int) -> None:
        """Take a particular slot (of an adopted cell)."""
        self._fresh.remove(slot)

    def release(self, slot: int) -> None:
        """Give a slot back; it rests first."""
        self._used.append((slot, time.monotonic() + _REST_S))


class CellFactory:
    """Makes, adopts and removes cells of one node. Single-threaded, as everything that forks."""

    def __init__(
        self,
        *,
        network: HostNetwork,
        cgroups: Cgroups,
        state_dir: Path,
        images: Images,
        scratch: Path,
        id_base: int,
        max_cells: int,
        mould: Mould,
    ) -> None:
        self._network = network
        self._links = Links(network.config.links)
        self._cgroups = cgroups
        self._state_dir = state_dir
        self._images = images
        self._scratch = scratch
        self._id_base = id_base
        self._mould = mould
        self._own_names = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._formats: dict[int, disks.DiskFormat] = {}
        self._users: dict[int, tuple[int, int]] = {}
        self._boot = _BOOT_ID.read_text().strip()
        self.slots = Slots(min(max_cells + _SPARE_SLOTS, network.config.slots))

    def setup(self) -> None:
        """Make the directories that cells are assembled in, and remove what a crash left there."""
        self._state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        rootfs.prepare_scratch(str(self._scratch))
        self._images.setup()
        self._images.repair()
        for draft in self._state_dir.glob(f"*{_DRAFT}"):
            draft.unlink()

    def prepare(self, kind: CellKind, base: Base, image: Path | None = None) -> Cell:
        """Fork a cell; it says READY on its channel when it stands. Raises OSError, NoSlotError.

        Its disk is empty, or what is in `image`.
        """
        slot = self.slots.take()
        name = group_name(slot)
        opened = contextlib.ExitStack()
        with opened:
            opened.callback(self.slots.release, slot)
            self._cgroups.create(name)
            opened.callback(self._cgroups.remove, name)
            network = self._links.create(slot)
            opened.callback(self._network.remove, slot)
            with contextlib.ExitStack() as local:
                local.callback(os.close, network)
                users, owners = self._users_of(slot)
                opened.callback(self._images.running(slot).unlink, missing_ok=True)
                disk = self._open_disk(slot, kind.disk_mb, image, owners)
                local.callback(os.close, disk)
                mounts = []
                for layer in base.layers:
                    mounts.append(linux.clone_mount(layer, users))
                    local.callback(os.close, mounts[-1])
                disk_root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=disk)
                opened.callback(os.close, disk_root)
                ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                opened.callback(ours.close)
                local.callback(theirs.close)
                root = rootfs.RootFs(tuple(mounts), disk, self._base_of(slot), kind.memory_mb // 2)
                order = Order(name, theirs, network, users, root, base.interpreter)
                pid, pidfd = self._mould.cast(order)
            opened.pop_all()
        ours.setblocking(False)
        cell = Cell(slot, pid, pidfd, kind, State.PREPARING, channel=ours, disk=disk_root)
        cell.base = base
        return cell

    def door(self, cell: Cell, listener: int, number: int, layers: tuple[Path, ...]) -> Door:
        """What an interpreter of this cell is started with."""
        return Door(
            listener,
            number,
            layers,
            cell.pid,
            tuple(self._cgroups.join_paths(group_name(cell.slot))),
            paused=lambda: cell.paused,
            changed=lambda: self.remember(cell),
        )

    def name(self, cell: Cell, hostname: str) -> None:
        """Set the host name of a cell. Raises OSError."""
        linux.setns(cell.pidfd, linux.CLONE_NEWUTS)
        try:
            linux.set_hostname(hostname)
        finally:
            linux.setns(self._own_names, linux.CLONE_NEWUTS)

    def end(self, cell: Cell) -> None:
        """Begin to end a cell: kill its processes. Its pidfd becomes readable when they died."""
        if cell.disk is not None:
            if not cell.parked:
                with contextlib.suppress(OSError):
                    disks.abandon_disk(cell.disk)
            os.close(cell.disk)
            cell.disk = None
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(cell.pidfd, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            # In version 1 a signal waits until the group is thawed.
            self._cgroups.thaw(group_name(cell.slot))

    def remove(self, cell: Cell) -> None:
        """Remove what is left of a cell whose first process has died."""
        with contextlib.ExitStack() as steps:  # each is taken, whatever the others raise
            steps.callback(self.slots.release, cell.slot)
            steps.callback(self._state_file(cell.slot).unlink, missing_ok=True)
            steps.callback(self._images.running(cell.slot).unlink, missing_ok=True)
            steps.callback(self._cgroups.remove, group_name(cell.slot))
            steps.callback(self._network.remove, cell.slot)
            steps.callback(self._cut, cell.slot)
            steps.callback(cell.close)

    def _cut(self, slot: int) -> None:
        """End what the node still has open to a cell that died.

        Whoever waits for it to take or to send more would never hear of its end: the reset that
        its kernel queued behind unsent data goes down with its network.
        """
        try:
            self._network.cut(slot)
        except OSError as error:
            _log.warning("callers of slot %d were not cut off: %s", slot, error)

    def remember(self, cell: Cell) -> None:
        """Write down a running cell, for a launcher that comes after this one."""
        if cell.started is None:
            cell.started = start_time(cell.pid)
        record: dict[str, Any] = {
            "boot": self._boot,
            "pid": cell.pid,
            "started": cell.started,
            "sandbox_id": cell.sandbox_id,
            "policy": cell.policy.to_json(),
            "paused": cell.paused,
        }
        if (door := cell.door) is not None:
            record["door"] = {
                "number": door.number,
                "layers": [str(layer) for layer in door.layers],
                "pid": door.pid,
                "started": door.pid and start_time(door.pid),
            }
        _replace_text(self._state_file(cell.slot), json.dumps(record))

    def adopt(self) -> list[Cell]:
        """The cells that an earlier launcher left running. Leftovers of others are removed."""
        cells = []
        for path in sorted(self._state_dir.glob("*.json")):
            try:
                cell = self._adopt(path)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # A power cut may leave a file without what was written to it.
                _log.warning("the record %s is damaged: %s", path, error)
                cell = None
            if cell is not None:
                cells.append(cell)
                self.slots.reserve(cell.slot)
            else:
                path.unlink(missing_ok=True)
        self._images.drop_running(but={cell.slot for cell in cells})
        kept = {group_name(cell.slot) for cell in cells}
        for name in self._cgroups.names() - kept:
            self._end_group(name)
        return cells

    def _adopt(self, path: Path) -> Cell | None:
        record = json.loads(path.read_text())
        if record.get("boot", self._boot) != self._boot:
            return None  # its pid is somebody else's now, or nobody's
        try:
            pidfd = os.pidfd_open(record["pid"])
        except ProcessLookupError:
            return None
        if start_time(record["pid"]) != record["started"]:
            os.close(pidfd)
            return None
        policy = EgressPolicy.from_json(record["policy"])
        cell = Cell(
            int(path.stem),
            record["pid"],
            pidfd,
            None,
            State.RUNNING,
            sandbox_id=record["sandbox_id"],
            policy=policy,
            paused=record.get("paused", False),
            started=record["started"],
        )
        if (told := record.get("door")) is not None:
            self._adopt_door(cell, told)
        return cell

    def _adopt_door(self, cell: Cell, told: dict[str, Any]) -> None:
        try:
            listener = linux.take_descriptor(cell.pidfd, told["number"])
        except OSError as error:
            _log.warning("slot %d will run no code any more: %s", cell.slot, error)
            return
        layers = tuple(Path(layer) for layer in told["layers"])
        cell.door = self.door(cell, listener, told["number"], layers)
        if told["pid"] is not None and start_time(told["pid"]) == told["started"]:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                cell.door.pidfd = os.pidfd_open(told["pid"])
                cell.door.pid = told["pid"]

    def _end_group(self, name: str) -> None:
        """Kill what is in a group nobody knows (a cell that was never started), and remove it."""
        for directory in self._cgroups.directories(name):
            with contextlib.suppress(FileNotFoundError):
                for pid in (directory / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            self._cgroups.thaw(name)
        self._cgroups.remove(name)

    def launched(self, cell: Cell) -> Launched:
        """What control is told of a running cell."""
        assert cell.sandbox_id is not None
        return Launched(
            cell.sandbox_id, cell.slot, self.address(cell), cell.pid, paused=cell.paused
        )

    def usage(self, cell: Cell) -> Usage:
        """What a running cell uses. Raises OSError if it is gone."""
        group = self._cgroups.usage(group_name(cell.slot))
        # Of an adopted cell the root is looked at from outside. Nobody inside can mount anything,
        # so that is the disk as well.
        root = f"/proc/{cell.pid}/root" if cell.disk is None else cell.disk
        disk, size = disks.disk_usage(root)
        return Usage(group.cpu_ns, group.memory, group.cache, disk, size)

    def address(self, cell: Cell) -> IPv4Address:
        """The cell's address."""
        return self._network.address(cell.slot)

    def _open_disk(self, slot: int, size_mb: int, image: Path | None, owners: int) -> int:
        path = self._images.running(slot)
        path.unlink(missing_ok=True)
        if image is None:
            disk_format = self._formats.get(size_mb)
            if disk_format is None:
                disk_format = self._formats[size_mb] = disks.DiskFormat.make(size_mb)
            disk_format.write(path)
        else:
            os.link(image, path)
        mount = disks.mount_disk(path)
        try:
            disks.prepare_disk(mount)
            linux.map_owners(mount, owners)
        except OSError:
            os.close(mount)
            raise
        return mount

    def _users_of(self, slot: int) -> tuple[int, int]:
        """The slot's user namespace, and the one its disk is mounted with."""
        found = self._users.get(slot)
        if found is None:
            base = self._base_of(slot)
            found = self._users[slot] = (
                userns.create_user_namespace(base),
                userns.create_user_namespace(base, with_root=True),
            )
        return found

    def _base_of(self, slot: int) -> int:
        return self._id_base + slot * userns.IDS

    def _state_file(self, slot: int) -> Path:
        return self._state_dir / f"{slot}.json"


def group_name(slot: int) -> str:
    """The control group of a slot."""
    return f"s{slot}"


def _replace_text(path: Path, text: str) -> None:
    """Give a file other content: whoever reads it finds all of the old or all of the new.

    This outlives the process, not the machine, as do those that the records are about. Renaming
    over a file would make some file systems (ext4) write to the disk at once: milliseconds.
    """
    draft = path.with_suffix(_DRAFT)
    draft.write_text(text)
    try:
        linux.exchange(draft, path)
    except OSError:  # there is none yet, or this file system cannot
        draft.replace(path)
    else:
        draft.unlink()


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; tells it from its pid's next user."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])
