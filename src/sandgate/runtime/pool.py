"""Which cells to keep prepared. Pure."""

from __future__ import annotations

from collections import Counter

from sandgate.runtime.cells import CellKind

_KINDS = 2
"""Of so many kinds, those asked for last, cells are kept prepared."""


class Pool:
    """What is asked for, and what therefore is to be there."""

    def __init__(self, size: int, kind: CellKind) -> None:
        """`size` cells of `kind`, and later of each of those that are asked for."""
        self._size = size
        self._kinds = [kind]

    def prefer(self, kind: CellKind) -> None:
        """A cell of this kind was asked for."""
        self._kinds = [kind, *(other for other in self._kinds if other != kind)][:_KINDS]

    def give_up(self, kind: CellKind | None) -> None:
        """Cells of this kind fail: prepare none until one is asked for. None is no kind."""
        if kind in self._kinds:
            self._kinds.remove(kind)

    def lacks(self, have: Counter[CellKind]) -> CellKind | None:
        """The kind to prepare a cell of now, if any, when there are so many of each."""
        for kind in self._kinds:
            if have[kind] < self._size:
                return kind
        return None
