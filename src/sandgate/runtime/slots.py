"""Numbers of cells: which are free, and which rest."""

from __future__ import annotations

import time
from collections import deque

REST_S = 3.0
"""How long a slot rests before reuse, so that late packets cannot reach the next sandbox."""


class NoSlotError(RuntimeError):
    """All slots are taken or rest."""


class Slots:
    """The slots of one node."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._fresh = deque(range(count))
        self._used: deque[tuple[int, float]] = deque()
        """With the time at which each has rested."""

    def take(self) -> int:
        """A rested slot, rather one that has a user namespace already. Raises NoSlotError."""
        if self._used and self._used[0][1] <= time.monotonic():
            return self._used.popleft()[0]
        if self._fresh:
            return self._fresh.popleft()
        raise NoSlotError(
            f"all {self._count} addresses are taken, or rest for {REST_S:g} s after use; end some "
            "sandboxes, or set a wider address_range"
        )

    def reserve(self, slot: int) -> None:
        """Take a particular slot (of an adopted cell)."""
        self._fresh.remove(slot)

    def release(self, slot: int) -> None:
        """Give a slot back; it rests first."""
        self._used.append((slot, time.monotonic() + REST_S))


def group_name(slot: int) -> str:
    """The control group of a slot."""
    return f"s{slot}"
