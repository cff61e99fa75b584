"""How long to wait before a component that died is started again. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY = 0.1
LONGEST_DELAY = 1.0
STABLE_AFTER = 3.0
"""A component that lived this long (seconds) is started again at once."""


@dataclass(slots=True)
class Backoff:
    """The delays of one component: none, and 0.1 s, doubled, up to 1 s, for early deaths."""

    failures: int = 0
    """Early deaths in a row."""

    def died(self, lived: float) -> float:
        """The delay in seconds before the next start, after a run of `lived` seconds."""
        if lived >= STABLE_AFTER:
            self.failures = 0
            return 0.0
        self.failures += 1
        doublings = min(self.failures - 1, 10)
        return float(min(LONGEST_DELAY, FIRST_DELAY * 2**doublings))
