"""How long to wait before a component that died is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 0.1
LONGEST_DELAY = 1.0
STABLE_AFTER = 3.0
"""A component that lived this long (seconds) starts over with the first delay."""


@dataclass(slots=True)
class Backoff:
    """The delays of one component: 0.1 s, doubled with every early death, up to 1 s."""

    failures: int = 0
    """Deaths in a row, none of them after a stable run."""

    def died(self, lived: float) -> float:
        """The delay in seconds before the next start, after a run of `lived` seconds."""
        self.failures = 1 if lived >= STABLE_AFTER else self.failures + 1
        doublings = min(self.failures - 1, 10)
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2**doublings))
