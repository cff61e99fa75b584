"""Stops the processes of cells where they stand, without holding up the launcher meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from sandgate.network import HostNetwork
from sandgate.runtime.cells import Cell
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.slots import group_name

_FREEZE_TIMEOUT_S = 5.0
_LOOK_S = 0.001
"""Between looks whether a group stands still: it takes a millisecond or two."""
_SECOND_CUT_S = 0.1
"""A proxy that found the route just before it went has connected by then."""

_log = logging.getLogger(__name__)

Done = Callable[[str | None], None]
"""Told once: None, or what went wrong (the cell runs then)."""


@dataclass(slots=True)
class _Freeze:
    done: Done
    deadline: float


class Freezer:
    """The freezes under way. Belongs to the launcher's loop, which calls :meth:`work`."""

    def __init__(self, cgroups: Cgroups, network: HostNetwork) -> None:
        self._cgroups = cgroups
        self._network = network
        self._under_way: dict[Cell, _Freeze] = {}
        self._second_cuts: dict[Cell, float] = {}

    def freeze(self, cell: Cell, done: Done, *, cut: bool = True) -> None:
        """Begin to freeze `cell`. `cut`: callers of its ports are cut off. Raises OSError."""
        self.forget(cell, "it was asked for again")
        self._cgroups.freeze(group_name(cell.slot))
        self._under_way[cell] = _Freeze(done, time.monotonic() + _FREEZE_TIMEOUT_S)
        if cut:
            self._network.cut(cell.slot)
            self._second_cuts[cell] = time.monotonic() + _SECOND_CUT_S
        self.work()

    def thaw(self, cell: Cell, reason: str) -> None:
        """Let `cell` go on. A freeze under way fails for `reason`. Raises OSError."""
        self.forget(cell, reason)
        self._cgroups.thaw(group_name(cell.slot))

    def forget(self, cell: Cell, reason: str) -> None:
        """Do nothing more about `cell`, which has ended. A freeze under way fails for `reason`."""
        self._second_cuts.pop(cell, None)
        freeze = self._under_way.pop(cell, None)
        if freeze is not None:
            freeze.done(reason)

    def patience(self) -> float | None:
        """Seconds until :meth:`work` should be called; None: there is nothing to do."""
        if self._under_way:
            return _LOOK_S
        if self._second_cuts:
            return max(0.0, min(self._second_cuts.values()) - time.monotonic())
        return None

    def work(self) -> None:
        """Look after everything that is under way."""
        now = time.monotonic()
        for cell, freeze in list(self._under_way.items()):
            if self._cgroups.is_frozen(group_name(cell.slot)):
                del self._under_way[cell]
                freeze.done(None)
            elif now > freeze.deadline:
                self._second_cuts.pop(cell, None)
                del self._under_way[cell]
                self._cgroups.thaw(group_name(cell.slot))
                freeze.done(f"its processes did not stand still within {_FREEZE_TIMEOUT_S:.0f} s")
            else:
                # Version 1 gives up on a process that forked at the wrong moment until asked again.
                self._cgroups.freeze(group_name(cell.slot))
        for cell, moment in list(self._second_cuts.items()):
            if now >= moment:
                del self._second_cuts[cell]
                try:
                    self._network.cut(cell.slot)
                except OSError as error:
                    _log.error("callers of slot %d are not cut off: %s", cell.slot, error)
