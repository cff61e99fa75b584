"""What a check can say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sandgate.settings import Settings


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """A node runs, but something will not work, or not for everybody."""
    FAIL = "fail"
    """A node cannot run, or not safely."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    level: Level
    detail: str
    fix: str = ""
    """What to do, as exactly as can be said; empty if nothing is wrong."""


Check = Callable[[Settings], Finding]


def ok(detail: str) -> Finding:
    """Nothing to do."""
    return Finding(Level.OK, detail)


def warn(detail: str, fix: str) -> Finding:
    """Something to do for the best result."""
    return Finding(Level.WARN, detail, fix)


def fail(detail: str, fix: str) -> Finding:
    """Something to do before a node can run."""
    return Finding(Level.FAIL, detail, fix)
