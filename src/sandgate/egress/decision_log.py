"""Decisions of the gateway: one line of JSON on the log for each, never so many that they hurt, and
all of them, added up, to the control process."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass

from sandgate.decisions.feed import Feed
from sandgate.decisions.tally import LONGEST_NAME, Subject
from sandgate.reasons import Reason

LINES_PER_SECOND = 100
"""Lines one sandbox may cause a second; the next line after that says how many were left out."""

_logger = logging.getLogger("sandgate.egress.decisions")


@dataclass(slots=True)
class Entry:
    """One decision. `destination` is the address that the sandbox aimed at."""

    sandbox_id: str | None
    protocol: str
    destination: str
    port: int
    allowed: bool
    reason: Reason
    name: str | None = None
    rule: str | None = None
    reported: bool = False
    """It passes because the policy only reports what it does not allow."""
    detail: str | None = None
    """Why there is no name, or what went wrong."""
    sent: int = 0
    received: int = 0
    seconds: float = 0.0
    begun: bool = False
    """Was :meth:`DecisionLog.begin` told of it?"""


class LineBudget:
    """How many more lines one sandbox may cause in this second."""

    __slots__ = ("_left", "_second", "suppressed")

    def __init__(self) -> None:
        self._second = -1
        self._left = 0
        self.suppressed = 0
        """Lines left out since the last that was written."""

    def take(self, now: float) -> bool:
        """May a line be written at `now` (seconds)? Counts it either way."""
        if int(now) != self._second:
            self._second, self._left = int(now), LINES_PER_SECOND
        if self._left > 0:
            self._left -= 1
            return True
        self.suppressed += 1
        return False


class DecisionLog:
    """Writes entries. `wall_clock` gives seconds since the epoch."""

    __slots__ = ("_clock", "_feed", "_unknown")

    def __init__(self, wall_clock: Callable[[], float], feed: Feed) -> None:
        self._clock = wall_clock
        self._feed = feed
        self._unknown = LineBudget()

    def begin(self, entry: Entry) -> None:
        """Tell that what `entry` allows has begun; :meth:`write` tells what came of it."""
        self._feed.begin(_subject(entry))

    def write(self, entry: Entry, budget: LineBudget | None = None) -> None:
        """Log `entry`; the line is at the expense of `budget` (that of its sandbox)."""
        self._feed.end(
            _subject(entry),
            entry.sent,
            entry.received,
            round(entry.seconds * 1000),
            counted=entry.begun,
        )
        now = self._clock()
        budget = budget or self._unknown
        if not budget.take(now):
            return
        line: dict[str, object] = {
            "time": round(now, 3),
            "sandboxID": entry.sandbox_id,
            "protocol": entry.protocol,
            "destination": entry.destination,
            "port": entry.port,
            "name": entry.name,
            "verdict": "allow" if entry.allowed else "deny",
            "reason": entry.reason,
            "rule": entry.rule,
            "bytesSent": entry.sent,
            "bytesReceived": entry.received,
            "durationMs": round(entry.seconds * 1000, 1),
        }
        if entry.reported:
            line["reported"] = True
        if entry.detail is not None:
            line["detail"] = entry.detail
        if budget.suppressed:
            line["suppressed"] = budget.suppressed
            budget.suppressed = 0
        _logger.info("%s", json.dumps(line))


def _subject(entry: Entry) -> Subject:
    return Subject(
        entry.sandbox_id or "",
        entry.protocol,
        entry.destination,
        entry.port,
        entry.name[:LONGEST_NAME] if entry.name else None,
        entry.allowed,
        entry.reason,
        entry.rule,
        entry.reported,
    )
