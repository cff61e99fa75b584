"""Ends sandboxes on time: one heap and one task for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable

_LONGEST_SLEEP = 30.0
"""Seconds; the wall clock may be set while we sleep."""
_SLACK = 64
"""Outdated heap entries that are tolerated beside one per sandbox."""


class ExpiryQueue:
    """Calls `expired(name)` once the wall clock has reached the moment set for `name`.

    The wall clock counts, because the moment is what the user was told (`endAt`). Runs on the
    event loop in which :meth:`run` runs.
    """

    def __init__(
        self, expired: Callable[[str], None], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._expired = expired
        self._clock = clock
        self._heap: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def set(self, name: str, moment: float) -> None:
        """Expire `name` at `moment` (seconds since 1970), instead of what was set before."""
        self._due[name] = moment
        heapq.heappush(self._heap, (moment, name))
        if len(self._heap) > 2 * len(self._due) + _SLACK:
            self._heap = [(due, name) for name, due in self._due.items()]
            heapq.heapify(self._heap)
        if self._heap[0] == (moment, name):
            self._changed.set()

    def discard(self, name: str) -> None:
        """Never expire `name`."""
        self._due.pop(name, None)

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._changed.clear()
            wait = self._expire_due()
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which on Python 3.11 may swallow a cancellation.
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def _expire_due(self) -> float:
        """Report all that is due; returns the seconds until the next."""
        while self._heap:
            moment, name = self._heap[0]
            if self._due.get(name) != moment:
                heapq.heappop(self._heap)
                continue
            wait = moment - self._clock()
            if wait > 0:
                return min(wait, _LONGEST_SLEEP)
            heapq.heappop(self._heap)
            del self._due[name]
            self._expired(name)
        return _LONGEST_SLEEP
