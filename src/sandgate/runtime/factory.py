"""What the launcher does with the cells of one node, from a job for one to its removal."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
from ipaddress import IPv4Address
from pathlib import Path

from sandgate.network import HostNetwork
from sandgate.runtime import disks, linux, rootfs
from sandgate.runtime.cells import Base, Cell, CellKind, State
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Door
from sandgate.runtime.jobs import Job, Made
from sandgate.runtime.protocol import Launched, Usage
from sandgate.runtime.records import Records
from sandgate.runtime.slots import Slots, group_name

_SPARE_SLOTS = 64

_log = logging.getLogger(__name__)


class CellFactory:
    """Orders, adopts and removes the cells of one node."""

    def __init__(
        self,
        *,
        network: HostNetwork,
        cgroups: Cgroups,
        records: Records,
        images: Images,
        scratch: Path,
        max_cells: int,
    ) -> None:
        self._network = network
        self._cgroups = cgroups
        self._records = records
        self._images = images
        self._scratch = scratch
        self._own_names = os.open("/proc/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._slots = Slots(min(max_cells + _SPARE_SLOTS, network.config.slots))

    def setup(self) -> None:
        """Make the directories that cells are assembled in, and remove what a crash left there."""
        self._records.setup()
        self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        rootfs.prepare_scratch(str(self._scratch))
        self._images.setup()
        self._images.repair()

    def job(self, kind: CellKind, base: Base, image: Path | None = None) -> Job:
        """A job for a new cell, whose disk is empty, or what is in `image`. Raises NoSlotError.

        Once it is done, :meth:`take` gives the cell; if it fails, :meth:`give_up` is to be called.
        """
        slot = self._slots.take()
        return Job(slot, base.layers, kind.disk_mb, image, kind.limits, base.interpreter)

    def take(self, made: Made, kind: CellKind, base: Base) -> Cell:
        """The cell that was made for a job."""
        pidfd, channel, disk = made.descriptors
        cell = Cell(made.slot, made.pid, pidfd, kind, State.PREPARING)
        cell.channel = socket.socket(fileno=channel)
        cell.channel.setblocking(False)
        cell.disk = disk
        cell.base = base
        return cell

    def give_up(self, slot: int) -> None:
        """The job for this slot came to nothing."""
        self._slots.release(slot)

    def clear(self, slot: int) -> None:
        """Remove what may be there of a cell that was half made, and whose maker is gone."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._images.running(slot).unlink, missing_ok=True)
            steps.callback(self._cgroups.end, group_name(slot))

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
        # While it is in use: nobody waits for the file system to free its blocks then. One that is
        # kept has another name.
        with contextlib.suppress(OSError):  # and once more when it is gone
            self._images.running(cell.slot).unlink()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(cell.pidfd, signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            # In version 1 a signal waits until the group is thawed.
            self._cgroups.thaw(group_name(cell.slot))

    def remove(self, cell: Cell) -> None:
        """Remove what is left of a cell whose first process has died."""
        with contextlib.ExitStack() as steps:  # each is taken, whatever the others raise
            steps.callback(self._slots.release, cell.slot)
            steps.callback(self._records.remove, cell.slot)
            steps.callback(self._images.running(cell.slot).unlink, missing_ok=True)
            steps.callback(self._cgroups.remove, group_name(cell.slot))
            steps.callback(self._network.remove, cell.slot)
            if cell.sandbox_id is not None:
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
        self._records.write(cell)

    def adopt(self) -> list[Cell]:
        """The cells that an earlier launcher left running. Leftovers of others are removed."""
        cells = []
        for cell in self._records.adopt(self.door):
            cells.append(cell)
            self._slots.reserve(cell.slot)
        self._images.drop_running(but={cell.slot for cell in cells})
        for name in self._cgroups.names() - {group_name(cell.slot) for cell in cells}:
            self._cgroups.end(name)
        return cells

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
