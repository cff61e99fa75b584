"""Lets envd tell its clients why their streams end, before its sandbox is killed or frozen.

A stream that is only cut looks to a client like a network that failed; the older SDKs then name no
reason (2.45.1: `e2b.envd.rpc`). envd may be hostile or busy, so nobody waits for it for long.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from sandgate.envd.signals import ENDING_SIGNAL, PAUSING_SIGNAL
from sandgate.network import HostNetwork
from sandgate.runtime.cell_channel import ENVD_PORT
from sandgate.runtime.cells import Cell

_LONGEST_S = 0.1
_LOOK_S = 0.002

Then = Callable[[str | None], None]
"""Told once: None when it is time to go on, or why that is off."""


class Cause(Enum):
    """Why streams end. The value is the signal that tells envd."""

    ENDING = ENDING_SIGNAL
    PAUSING = PAUSING_SIGNAL


@dataclass(frozen=True, slots=True)
class _Farewell:
    then: Then
    deadline: float


class Farewells:
    """The farewells under way. Belongs to the launcher's loop, which calls :meth:`work`."""

    def __init__(self, network: HostNetwork) -> None:
        self._network = network
        self._under_way: dict[Cell, _Farewell] = {}

    def begin(self, cell: Cell, cause: Cause, then: Then) -> None:
        """Have `cell` end its streams; `then` is called when it has, at once if it has none.

        One that is under way is off. Raises OSError.
        """
        self.forget(cell, "it was asked for something else")
        if not self._has_clients(cell):
            then(None)
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(cell.pidfd, cause.value)
        self._under_way[cell] = _Farewell(then, time.monotonic() + _LONGEST_S)

    def forget(self, cell: Cell, reason: str) -> None:
        """Call a farewell of `cell` off, if there is one."""
        farewell = self._under_way.pop(cell, None)
        if farewell is not None:
            farewell.then(reason)

    def patience(self) -> float | None:
        """Seconds until :meth:`work` should be called; None: there is nothing to do."""
        return _LOOK_S if self._under_way else None

    def work(self) -> None:
        """Look after everything that is under way."""
        now = time.monotonic()
        for cell, farewell in list(self._under_way.items()):
            if now > farewell.deadline or not self._has_clients(cell):
                del self._under_way[cell]
                farewell.then(None)

    def _has_clients(self, cell: Cell) -> bool:
        # The ingress keeps no connection into a sandbox on which no request is open.
        return self._network.callers(cell.slot, ENVD_PORT) > 0
