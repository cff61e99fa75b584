"""What a crash left of sandboxes that are gone: found, and removed.

A slot names everything of a cell, so whatever bears the number of a slot that nobody has is left
over. Some of it goes by itself a moment after its cell (links, loop devices): only what is found
twice, with some time in between, is taken for a leak.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sandgate.network import HostNetwork
from sandgate.runtime.cells import start_time
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.images import Images
from sandgate.runtime.slots import group_name

PERIOD_S = 60.0
"""From one look of the reaper to the next."""
MOST_LEAKS = 100
"""Told of in one answer."""
_LOOP_CLR_FD = 0x4C01
_LONGEST = 1 << 12
"""Bytes of a file of sysfs: a page."""
_GROUP = re.compile(r"s(\d+)")

_log = logging.getLogger(__name__)


class Kind(StrEnum):
    """What was left."""

    GROUP = "control group"
    """With the processes in it."""
    RULES = "kernel rules"
    LINK = "network link"
    DISK = "disk"
    LOOP = "loop device"
    RECORD = "record"


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that is left over."""

    kind: Kind
    name: str
    slot: int

    def to_json(self) -> list[str | int]:
        """The form that travels."""
        return [self.kind, self.name, self.slot]

    @classmethod
    def from_json(cls, data: list[str | int]) -> Leak:
        """The inverse. Raises ValueError."""
        kind, name, slot = data
        return cls(Kind(str(kind)), str(name), int(slot))


class Leaks:
    """Looks at one node's things. Nothing of other nodes is seen: all is looked for by what is
    this node's alone (its group, its directory, its table, the links of its namespace)."""

    def __init__(
        self, *, data_dir: Path, cgroups: Cgroups, images: Images, network: HostNetwork | None
    ) -> None:
        """`network` None: the network namespace is not this node's to look at."""
        self._cells = data_dir / "cells"
        self._disks = data_dir / "disks" / "running"
        self._cgroups = cgroups
        self._images = images
        self._network = network

    def find(self, live: Set[int]) -> list[Leak]:
        """What is there of slots that are not `live`. Raises OSError."""
        return [leak for leak in self._all() if leak.slot not in live]

    def remove(self, leaks: Iterable[Leak], live: Set[int]) -> list[Leak]:
        """Remove those of `leaks` that still are some; gives those that were removed."""
        still, removed = set(self.find(live)), []
        for leak in leaks:
            if leak not in still:
                continue
            try:
                self._remove(leak)
            except OSError as error:
                _log.error("%s %s was left and cannot be removed: %s", leak.kind, leak.name, error)
            else:
                _log.warning("%s %s was left and is removed", leak.kind, leak.name)
                removed.append(leak)
        return removed

    def live_slots(self) -> set[int]:
        """The slots of the sandboxes that run, by their records: for when there is no launcher."""
        found = set()
        for path in self._cells.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads(path.read_text())
                if start_time(record["pid"]) == record["started"]:
                    found.add(int(path.stem))
        return found

    def _all(self) -> Iterator[Leak]:
        # The order in which they are removed: what goes by itself comes after what holds it.
        for name in sorted(self._cgroups.names()):
            if match := _GROUP.fullmatch(name):
                yield Leak(Kind.GROUP, name, int(match[1]))
        if self._network is not None:
            for slot in sorted(self._network.slots_with_rules()):
                yield Leak(Kind.RULES, f"of slot {slot}", slot)
            for slot in sorted(self._network.slots()):
                yield Leak(Kind.LINK, f"sg{slot}", slot)
        yield from self._loops()
        for kind, directory, suffix in (
            (Kind.DISK, self._disks, ".img"),
            (Kind.RECORD, self._cells, ".json"),
        ):
            for path in sorted(directory.glob(f"*{suffix}")):
                if path.stem.isdigit():
                    yield Leak(kind, str(path), int(path.stem))

    def _loops(self) -> Iterator[Leak]:
        image = re.compile(rf"{re.escape(str(self._disks))}/(\d+)\.img(?: \(deleted\))?")
        # One after the other: a machine may have thousands, most of them somebody else's.
        with os.scandir("/sys/block") as devices:
            for device in devices:
                if device.name.startswith("loop"):
                    with contextlib.suppress(OSError):  # it has no file
                        backing = _read(f"{device.path}/loop/backing_file")
                        if match := image.fullmatch(backing):
                            yield Leak(Kind.LOOP, device.name, int(match[1]))

    def _remove(self, leak: Leak) -> None:
        removers: dict[Kind, Callable[[Leak], None]] = {
            Kind.GROUP: lambda leak: self._cgroups.end(group_name(leak.slot)),
            Kind.RULES: self._remove_rules,
            Kind.LINK: self._remove_link,
            Kind.LOOP: lambda leak: _clear_loop(leak.name),
            Kind.DISK: lambda leak: self._images.running(leak.slot).unlink(missing_ok=True),
            Kind.RECORD: lambda leak: Path(leak.name).unlink(missing_ok=True),
        }
        removers[leak.kind](leak)

    def _remove_rules(self, leak: Leak) -> None:
        if self._network is not None:
            self._network.purge(leak.slot)

    def _remove_link(self, leak: Leak) -> None:
        if self._network is not None:
            self._network.delete_link(leak.slot)


def _read(path: str) -> str:
    """The one line of a file of sysfs. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, _LONGEST).decode(errors="replace").rstrip("\n")
    finally:
        os.close(file)


def _clear_loop(device: str) -> None:
    """Let go of the device's file; if it still is mounted, the kernel does when it is not."""
    loop = os.open(f"/dev/{device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(loop, _LOOP_CLR_FD)
    except OSError as error:
        if error.errno != errno.ENXIO:  # it has been let go of
            raise
    finally:
        os.close(loop)


class Reaper:
    """Looks for leaks now and then, for the launcher's loop, which calls :meth:`work`."""

    def __init__(
        self, leaks: Leaks, live: Callable[[], set[int]], period: float = PERIOD_S
    ) -> None:
        """`live` gives the slots that are somebody's."""
        self._leaks = leaks
        self._live = live
        self._period = period
        self._suspects: set[Leak] = set()
        self._next_look = time.monotonic() + period

    def patience(self) -> float:
        """Seconds until :meth:`work` should be called."""
        return max(0.0, self._next_look - time.monotonic())

    def work(self) -> None:
        """Remove what was left over at the last look, too."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + self._period
        try:
            live = self._live()
            found = self._leaks.find(live)
            self._leaks.remove([leak for leak in found if leak in self._suspects], live)
        except OSError as error:
            _log.error("leaks cannot be looked for: %s", error)
            return
        self._suspects = set(found)

    def answer(self, remove: Iterable[Leak]) -> list[Leak]:
        """What `sandgate doctor --leaks` is told: all that seems left, after `remove` was removed.

        Raises OSError.
        """
        live = self._live()
        wanted = list(remove)
        if wanted:
            return self._leaks.remove(wanted, live)
        return self._leaks.find(live)
