"""What the launcher knows of its cells, and who waits for which. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sandgate.runtime.cells import Cell, CellKind, State
from sandgate.runtime.freezing import Done
from sandgate.runtime.peers import Request, RequestError
from sandgate.runtime.protocol import SandboxSpec

_KINDS = 2
"""Of so many kinds, those asked for last, cells are kept prepared."""


@dataclass(slots=True, eq=False)
class Create:
    """A create request on its way."""

    request: Request
    spec: SandboxSpec
    config: int
    """Memory file for envd; passed on unread."""
    deadline: float
    """Monotonic seconds."""


@dataclass(slots=True)
class Book:
    """The cells by what they are looked up by."""

    cells: set[Cell] = field(default_factory=set)
    by_sandbox: dict[str, Cell] = field(default_factory=dict)
    claims: dict[Cell, Create] = field(default_factory=dict)
    """Cells that a request waits for."""
    parks: dict[Cell, list[Done]] = field(default_factory=dict)
    """Cells that end and whose disks are kept."""
    kills: dict[Cell, list[Request]] = field(default_factory=dict)

    def started(self, sandbox_id: str) -> Cell:
        """The cell of a sandbox that runs and is not ending. Raises RequestError."""
        cell = self.by_sandbox.get(sandbox_id)
        if cell is None or cell.state is not State.RUNNING:
            raise RequestError(f"sandbox {sandbox_id} does not run")
        if cell in self.kills or cell in self.parks:
            raise RequestError(f"sandbox {sandbox_id} does not run")
        return cell

    def unclaimed(self, kind: CellKind) -> Cell | None:
        """A cell of the pool, one that stands before one that is still being prepared."""
        found = None
        for cell in self.cells:
            if cell.kind == kind and cell.sandbox_id is None:
                if cell.state is State.READY:
                    return cell
                found = cell
        return found


class Pool:
    """Which cells to keep prepared."""

    def __init__(self, book: Book, size: int, kind: CellKind) -> None:
        """`size` cells of `kind`, and later of each of those that are asked for."""
        self._book = book
        self._size = size
        self._kinds = [kind]

    def prefer(self, kind: CellKind) -> None:
        """A cell of this kind was asked for."""
        self._kinds = [kind, *(other for other in self._kinds if other != kind)][:_KINDS]

    def give_up(self, kind: CellKind | None) -> None:
        """Cells of this kind fail: prepare none until one is asked for. None is no kind."""
        if kind in self._kinds:
            self._kinds.remove(kind)

    def lacks(self) -> CellKind | None:
        """The kind to prepare a cell of now, if any."""
        if self._book.claims:
            return None  # first those who wait
        have = Counter(cell.kind for cell in self._book.cells if cell.sandbox_id is None)
        for kind in self._kinds:
            if have[kind] < self._size:
                return kind
        return None
