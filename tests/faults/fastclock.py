"""Lets time go faster for a node's Python processes: put into their environment, not into the node.

All of them agree on the time, since each counts from the moment in `fastclock.json`. The clocks and
what waits by them (event loops, selectors, sleep) go at the same rate. HAProxy, the kernel, the
supervisor and whatever sandboxes run have the usual time.
"""

from __future__ import annotations

import datetime
import json
import selectors
import sys
import time
from pathlib import Path
from typing import Any

_PROCESSES = ("sandgate.api", "sandgate.egress", "sandgate.recorder", "sandgate.runtime")
_real_time, _real_monotonic, _real_sleep = time.time, time.monotonic, time.sleep


def install(rate: float, wall: float, monotonic: float) -> None:
    """From the moment `wall` (seconds since 1970), also called `monotonic`, on."""
    real_datetime: Any = datetime.datetime

    def fast_time() -> float:
        return wall + (_real_time() - wall) * rate

    def fast_monotonic() -> float:
        return monotonic + (_real_monotonic() - monotonic) * rate

    class FastDateTime(real_datetime):  # type: ignore[misc]  # whatever the program has
        """Whose now is the fast clock's."""

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return real_datetime.fromtimestamp(fast_time(), tz)

    time.time, time.monotonic = fast_time, fast_monotonic
    time.sleep = lambda seconds: _real_sleep(float(seconds) / rate)
    stand_in: Any = datetime
    stand_in.datetime = FastDateTime
    for kind in (selectors.EpollSelector, selectors.PollSelector, selectors.SelectSelector):
        _hasten(kind, rate)
    _hasten_uvloop(rate, fast_monotonic)


def _hasten(kind: Any, rate: float) -> None:
    real = kind.select

    def select(self: Any, timeout: float | None = None) -> Any:
        return real(self, timeout if timeout is None or timeout <= 0 else timeout / rate)

    kind.select = select


def _hasten_uvloop(rate: float, clock: Any) -> None:
    import uvloop

    base: Any = uvloop.Loop

    class FastLoop(base):  # type: ignore[misc]  # of whatever class the program's loops are
        """Whose timers go by the fast clock."""

        def time(self) -> float:
            now: float = clock()
            return now

        def call_later(self, delay: float, callback: Any, *args: Any, **more: Any) -> Any:
            return super().call_later(delay / rate, callback, *args, **more)

        def call_at(self, when: float, callback: Any, *args: Any, **more: Any) -> Any:
            return self.call_later(max(0.0, when - clock()), callback, *args, **more)

    stand_in: Any = uvloop
    stand_in.Loop = FastLoop


_settings = Path(__file__).with_suffix(".json")
if _settings.exists() and any(name in sys.orig_argv for name in _PROCESSES):
    install(**json.loads(_settings.read_text()))
