"""Decisions, added up where they are the same, in bounded memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sandgate.reasons import Reason

PER_SANDBOX = 128
"""Most subjects of one sandbox that wait at once, but for the first of each reason."""
TOTAL = 16_384
"""Most subjects that wait at once, but for :data:`_LEAST` and the reasons of each sandbox."""
_LEAST = 4
LONGEST_NAME = 255
"""Characters of a name that are kept."""


class Subject(NamedTuple):
    """What decisions have in common that are added up."""

    sandbox_id: str
    """Empty for traffic of no sandbox that is known."""
    protocol: str
    """`http`, `tls`, `dns` where the gateway decided, else `tcp`, `udp`, `icmp` or a number."""
    destination: str
    """The address that the sandbox aimed at."""
    port: int
    """0 where the protocol has none."""
    name: str | None
    """The name that was shown or asked for."""
    allowed: bool
    reason: Reason
    rule: str | None
    """The entry of the policy, or the range, that decided."""
    reported: bool = False
    """Did it pass only because the policy is in report mode?"""


@dataclass(slots=True)
class Sum:
    """Decisions added up. Moments are seconds since 1970."""

    first: float
    last: float
    count: int = 1
    """Decisions; what ends adds its bytes and time only, for it was counted when it began."""
    sent: int = 0
    """Bytes from the sandbox, as `received` to it."""
    received: int = 0
    milliseconds: int = 0
    """How long connections were open, in sum."""

    def add(self, other: Sum) -> None:
        """Take `other` in."""
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)
        self.count += other.count
        self.sent += other.sent
        self.received += other.received
        self.milliseconds += other.milliseconds


class Tally:
    """Adds decisions up until they are taken away.

    No sandbox can fill it: each has a share, which gets smaller as more sandboxes have something
    waiting, and a place beyond it for each reason, so that no flood hides what else happens.
    Further decisions are counted, and nothing else of them is kept.
    """

    def __init__(self, per_sandbox: int = PER_SANDBOX) -> None:
        self._per_sandbox = per_sandbox
        self._waiting: dict[str, dict[Subject, Sum]] = {}
        self._unrecorded: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting or self._unrecorded)

    def add(self, subject: Subject, amount: Sum) -> None:
        """Count decisions. `amount` belongs to the tally from now on."""
        waiting = self._waiting.get(subject.sandbox_id)
        if waiting is None:
            waiting = self._waiting[subject.sandbox_id] = {}
        known = waiting.get(subject)
        if known is not None:
            known.add(amount)
        elif len(waiting) < max(
            _LEAST, min(self._per_sandbox, TOTAL // len(self._waiting))
        ) or not any(other.reason is subject.reason for other in waiting):
            waiting[subject] = amount
        else:
            self.miss(subject.sandbox_id, amount.count)

    def miss(self, sandbox_id: str, count: int) -> None:
        """Count decisions of which nothing else is known."""
        if count > 0:
            self._unrecorded[sandbox_id] = self._unrecorded.get(sandbox_id, 0) + count

    def take(self, most: int) -> tuple[list[tuple[Subject, Sum]], dict[str, int]]:
        """Up to `most` sums, evenly from all sandboxes, and by sandbox what was not recorded."""
        taken: list[tuple[Subject, Sum]] = []
        for others, name in zip(range(len(self._waiting), 0, -1), list(self._waiting), strict=True):
            if len(taken) >= most:
                break
            share = max(1, (most - len(taken)) // others)
            waiting = self._waiting.pop(name)
            chosen = list(waiting)[:share]
            taken += [(subject, waiting.pop(subject)) for subject in chosen]
            if waiting:
                self._waiting[name] = waiting  # behind those that have not had their turn
        unrecorded, self._unrecorded = self._unrecorded, {}
        return taken, unrecorded
