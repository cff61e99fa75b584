"""Which cells to keep prepared. Pure."""

from __future__ import annotations

from collections import Counter, deque

from sandgate.runtime.cells import CellKind

_MOST = 100
_LEAST = 4
_MEMORY_SHARE = 25
"""One part of so many of the machine's memory goes to cells that wait."""
_CELL_MB = 6
"""What a prepared cell takes, all included (measured: docs/performance.md)."""
_KINDS = 4
"""Of so many kinds, those most asked for, cells are kept prepared."""
_REMEMBERED = 64
"""Requests by which the pool is divided between kinds."""


def default_size(machine_mb: int) -> int:
    """How many cells a machine with so much memory keeps prepared, unless it is told otherwise."""
    return max(_LEAST, min(_MOST, machine_mb // _MEMORY_SHARE // _CELL_MB))


class Pool:
    """What was asked for last, and what therefore is to be there."""

    def __init__(self, size: int, kind: CellKind) -> None:
        """`size` cells, all of `kind` until others are asked for."""
        self._size = size
        self._asked: deque[CellKind] = deque([kind] * _REMEMBERED, _REMEMBERED)
        self._shares = self._divide()
        self._failing: set[CellKind] = set()

    def prefer(self, kind: CellKind) -> None:
        """A cell of this kind was asked for."""
        oldest = self._asked[0]
        self._asked.append(kind)
        if kind != oldest:
            self._shares = self._divide()
        self._failing.discard(kind)

    def give_up(self, kind: CellKind) -> None:
        """Cells of this kind fail: prepare none until one is asked for."""
        self._failing.add(kind)

    def lacks(self, have: Counter[CellKind]) -> CellKind | None:
        """The kind to prepare a cell of now, if any, when there are so many of each."""
        for kind, share in self._shares:
            if kind not in self._failing and have[kind] < share:
                return kind
        return None

    def superfluous(self, have: Counter[CellKind]) -> CellKind | None:
        """The kind to end a cell of, if there are more than the pool has room for."""
        shares = dict(self._shares)
        if have.total() <= sum(shares.values()):
            return None
        return max(have, key=lambda kind: have[kind] - shares.get(kind, 0))

    def _divide(self) -> list[tuple[CellKind, int]]:
        """How many of each kind there should be; most asked for first."""
        counted = Counter(self._asked).most_common(_KINDS)
        return [(kind, -(-self._size * count // _REMEMBERED)) for kind, count in counted]
