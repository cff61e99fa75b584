"""Many timeouts of one length, for the price of one timer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable


class Timeouts:
    """Calls back after `seconds`, unless told otherwise before. Belongs to one event loop.

    All are as long as each other, so they are due in the order in which they were started.
    """

    __slots__ = ("_due", "_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._due: OrderedDict[Callable[[], None], float] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None

    def start(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, `seconds` from now; if it was started before, only then."""
        self._due.pop(callback, None)
        self._due[callback] = due = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(due, self._expire)

    def stop(self, callback: Callable[[], None]) -> None:
        """Do not call `callback`. Does nothing if it was not started."""
        self._due.pop(callback, None)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            while self._due:
                callback, due = next(iter(self._due.items()))
                if due > now:
                    break
                del self._due[callback]
                callback()
        finally:
            if self._due and self._timer is None:
                self._timer = self._loop.call_at(next(iter(self._due.values())), self._expire)
