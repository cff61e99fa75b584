"""How often something may happen: a token bucket. Pure."""

from __future__ import annotations

from sandgate.limits import BURST_SECONDS


class RateBudget:
    """What is left of a rate, which is the same at every call; `BURST_SECONDS` of it at first."""

    __slots__ = ("_at", "_left")

    def __init__(self) -> None:
        self._at: float | None = None
        self._left = 0.0

    def take(self, now: float, rate: int) -> bool:
        """May it happen at `now` (seconds of any clock that does not go back)?"""
        most = float(rate * BURST_SECONDS)
        self._left = most if self._at is None else min(most, self._left + (now - self._at) * rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
