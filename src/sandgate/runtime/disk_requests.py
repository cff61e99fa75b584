"""The launcher's requests about disks that outlive their sandbox's processes."""

from __future__ import annotations

from collections.abc import Callable

from sandgate.runtime.book import Book
from sandgate.runtime.cells import Cell
from sandgate.runtime.farewell import Cause
from sandgate.runtime.images import Images
from sandgate.runtime.keeping import Keeper
from sandgate.runtime.peers import Request


class DiskRequests:
    """Keeps, copies and drops disks."""

    def __init__(
        self, book: Book, images: Images, keeper: Keeper, end: Callable[[Cell, Cause], None]
    ) -> None:
        """`end` ends the processes of a cell for a cause."""
        self._book = book
        self._end = end
        self._images = images
        self._keeper = keeper

    def operations(self) -> dict[str, Callable[[Request], None]]:
        """What carries out each operation, by its name in requests."""
        return {
            "park": self._park,
            "snapshot": self._snapshot,
            "clone": self._clone,
            "drop_snapshot": self._drop_snapshot,
            "images": self._list_images,
        }

    def _park(self, request: Request) -> None:
        """End the processes of a sandbox and keep its disk."""
        sandbox_id = request.sandbox_id
        report = request.reporter(f"sandbox {sandbox_id} was not kept")
        cell = self._book.by_sandbox.get(sandbox_id)
        if cell is None and self._images.kept(sandbox_id).exists():
            self._keeper.when_unmounted(sandbox_id, report)
            return
        if cell is None or cell not in self._book.parks:
            cell = self._book.started(sandbox_id)
            self._images.keep(cell.slot, sandbox_id)
            cell.parked = True
            self._end(cell, Cause.PAUSING)
        self._book.parks.setdefault(cell, []).append(report)

    def _snapshot(self, request: Request) -> None:
        """Copy the disk of a sandbox, with or without processes."""
        sandbox_id, snapshot_id = request.sandbox_id, request.snapshot_id
        report = request.reporter(f"no snapshot of sandbox {sandbox_id} was taken")
        kept = self._images.kept(sandbox_id)
        if sandbox_id not in self._book.by_sandbox and kept.exists():
            self._keeper.copy(kept, self._images.snapshot(snapshot_id), report)
        else:
            self._keeper.snapshot(self._book.started(sandbox_id), snapshot_id, report)

    def _clone(self, request: Request) -> None:
        """Copy a snapshot to be the disk of a sandbox that is yet to be created."""
        source = self._images.snapshot(request.snapshot_id)
        target = self._images.kept(request.sandbox_id)
        self._keeper.copy(source, target, request.reporter("not copied"))

    def _drop_snapshot(self, request: Request) -> None:
        self._images.snapshot(request.snapshot_id).unlink(missing_ok=True)
        request.reply({})

    def _list_images(self, request: Request) -> None:
        kept, snapshots = self._images.all_kept(), self._images.all_snapshots()
        request.reply({"kept": kept, "snapshots": snapshots})
