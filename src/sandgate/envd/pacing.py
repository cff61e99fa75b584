"""How often the output of a command is read that writes little at a time, and much in all."""

from __future__ import annotations

_SHORT = 1 << 10
"""Fewer bytes than this are hardly worth the reading."""
_AT_ONCE = 32
_PER_SECOND = 200
PAUSE_S = 0.01
"""Long enough for a pipe to fill, too short to be seen."""


class Pace:
    """Of one command.

    A command that floods its output line by line and the one who reads it would wake each other
    with each line, 80,000 times a second. Both lose most of their time by that, and Linux from 6.12
    to 6.18.44 then keeps everyone else from the processor (its commit 101f3498b4bd mended it). So
    32 short reads are made at once, and 200 a second; those that go beyond are made apart.
    """

    def __init__(self) -> None:
        self._short_reads = 0.0
        """Less what the time since has made good."""
        self._last = 0.0

    def pause_after(self, size: int, now: float) -> float:
        """Seconds for which to leave the output alone after `size` bytes were read at `now`."""
        if size >= _SHORT:
            return 0.0
        made_good = (now - self._last) * _PER_SECOND
        self._short_reads = max(0.0, self._short_reads - made_good) + 1
        self._last = now
        return PAUSE_S if self._short_reads > _AT_ONCE else 0.0
