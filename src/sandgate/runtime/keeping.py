"""What outlives processes: disks of sandboxes that have none, and snapshots."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Callable
from pathlib import Path

from sandgate.runtime import disks, helpers, images, linux
from sandgate.runtime.cells import Cell
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.freezing import Done, Freezer
from sandgate.runtime.slots import group_name

_LOOK_S = 0.02


class Keeper:
    """The copies and unmounts under way. Belongs to the launcher's loop, which calls :meth:`work`.

    A `done` is told once: None, or what went wrong.
    """

    def __init__(
        self,
        store: images.Images,
        cgroups: Cgroups,
        freezer: Freezer,
        selector: selectors.BaseSelector,
    ) -> None:
        self._images = store
        self._cgroups = cgroups
        self._freezer = freezer
        self._selector = selector
        self._unmounts: list[tuple[Path, Done]] = []
        self._next_look = 0.0

    def when_unmounted(self, sandbox_id: str, done: Done) -> None:
        """Wait until the image kept of a sandbox is complete: nothing is mounted from it."""
        self._unmounts.append((self._images.kept(sandbox_id), done))
        self.work()

    def snapshot(self, cell: Cell, snapshot_id: str, done: Done) -> None:
        """Copy the disk of a cell, which stands still meanwhile. Raises OSError."""
        source, target = self._images.running(cell.slot), self._images.snapshot(snapshot_id)
        disk = cell.disk

        def work() -> None:
            if disk is None:  # adopted: which file system it is cannot be told from outside
                os.sync()
            else:
                linux.sync_fs(disk)
            images.copy(source, target)

        def go_on(failure: str | None) -> None:
            if not cell.paused:
                with contextlib.suppress(FileNotFoundError):  # it ended
                    self._cgroups.thaw(group_name(cell.slot))
            done(failure)

        def frozen(failure: str | None) -> None:
            if failure is not None:
                done(failure)
            else:
                self._help(work, go_on)

        self._freezer.freeze(cell, frozen, cut=False)

    def copy(self, source: Path, target: Path, done: Done) -> None:
        """Copy an image that nobody uses."""
        self._help(lambda: images.copy(source, target), done)

    def patience(self) -> float | None:
        """Seconds until :meth:`work` should be called; None: there is nothing to do."""
        return max(0.0, self._next_look - time.monotonic()) if self._unmounts else None

    def work(self) -> None:
        """Look after the unmounts."""
        if not self._unmounts or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_S
        waiting, self._unmounts = self._unmounts, []
        for image, done in waiting:
            if not image.exists():
                done("it was ended")
            elif disks.is_attached(image):
                self._unmounts.append((image, done))
            else:
                done(None)

    def _help(self, work: Callable[[], None], done: Done) -> None:
        pid, pidfd = helpers.start(work)

        def ended() -> None:
            self._selector.unregister(pidfd)
            os.close(pidfd)
            done(helpers.outcome(pid))

        self._selector.register(pidfd, selectors.EVENT_READ, ended)
