"""How often the output of a command is read that writes little at a time, and much in all."""

from __future__ import annotations

_SHORT = 1 << 10
"""Fewer bytes than this are hardly worth the reading."""
_WINDOW_S = 0.1
_AT_ONCE = 32
PAUSE_S = 0.01
"""Long enough for a pipe to fill, too short to be seen."""


class Pace:
    """Of one command.

    A command that floods its output line by line and the one who reads it would wake each other
    with each line, 80,000 times a second. Both lose most of their time by that, and Linux from 6.12
    to 6.18.44 then keeps everyone else from the processor (its commit 101f3498b4bd mended it). So
    of short reads a few in a row are made at once, and the later ones apart.
    """

    def __init__(self) -> None:
        self._window_end = 0.0
        self._short_reads = 0

    def pause_after(self, size: int, now: float) -> float:
        """Seconds for which to leave the output alone after `size` bytes were read at `now`."""
        if size >= _SHORT:
            return 0.0
        if now >= self._window_end:
            self._short_reads, self._window_end = 0, now + _WINDOW_S
        self._short_reads += 1
        return PAUSE_S if self._short_reads > _AT_ONCE else 0.0
