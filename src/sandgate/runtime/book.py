"""What the launcher knows of its cells, and who waits for which. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from sandgate.runtime.cells import Cell, CellKind, State
from sandgate.runtime.cgroups import Limits
from sandgate.runtime.freezing import Done
from sandgate.runtime.peers import Request, RequestError
from sandgate.runtime.protocol import SandboxSpec


@dataclass(slots=True, eq=False)
class Create:
    """A create request on its way."""

    request: Request
    spec: SandboxSpec
    config: int
    """Memory file for envd; passed on unread."""
    deadline: float
    """Monotonic seconds."""

    @property
    def kind(self) -> CellKind:
        """Of the cell that it takes."""
        spec = self.spec
        limits = Limits(spec.cpu_count, spec.memory_mb, spec.max_pids)
        return CellKind(spec.template, spec.disk_mb, limits)


@dataclass(slots=True)
class Book:
    """The cells by what they are looked up by."""

    cells: set[Cell] = field(default_factory=set)
    spare: dict[CellKind, set[Cell]] = field(default_factory=dict)
    """Those that are nobody's, and may be somebody's: looked at often, when there may be many."""
    preparing: set[Cell] = field(default_factory=set)
    """Those of the spare ones that do not stand yet."""
    by_sandbox: dict[str, Cell] = field(default_factory=dict)
    waiting: dict[str, Create] = field(default_factory=dict)
    """Requests that have no cell yet, by sandbox, oldest first."""
    claims: dict[Cell, Create] = field(default_factory=dict)
    """Cells that a request has, and that are not up yet."""
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

    def add(self, cell: Cell) -> None:
        """There is one more cell."""
        self.cells.add(cell)
        if cell.sandbox_id is None and cell.kind is not None:
            self.spare.setdefault(cell.kind, set()).add(cell)
            self.preparing.add(cell)

    def stands(self, cell: Cell) -> None:
        """It is prepared."""
        cell.state = State.READY
        self.preparing.discard(cell)

    def take(self, cell: Cell) -> None:
        """It is somebody's now, or is to end."""
        self.preparing.discard(cell)
        if cell.kind is not None and (spare := self.spare.get(cell.kind)) is not None:
            spare.discard(cell)
            if not spare:
                del self.spare[cell.kind]

    def remove(self, cell: Cell) -> None:
        """It is gone."""
        self.cells.discard(cell)
        self.take(cell)

    def ready(self, kind: CellKind) -> Cell | None:
        """A cell of the pool that stands."""
        for cell in self.spare.get(kind, ()):
            if cell.state is State.READY:
                return cell
        return None

    def count_spare(self) -> Counter[CellKind]:
        """How many cells are nobody's, by kind."""
        return Counter({kind: len(cells) for kind, cells in self.spare.items()})

    def first_waiting(self, kind: CellKind | None) -> Create | None:
        """The request that has waited longest for any cell of this kind. None is no kind."""
        for create in self.waiting.values():
            if create.kind == kind and not create.spec.kept:
                return create
        return None
