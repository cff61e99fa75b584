"""The states of a sandbox and how it moves between them, as a table. Pure.

    CREATING ──STARTED──> RUNNING
        │                    │
        └─ FAILED, EXITED    └─ KILLED, EXPIRED, EXITED, CLOSED
                 └──────> KILLING ──GONE──> ENDED

Once KILLING, nothing brings a sandbox back. Pausing will be two states more and their rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a sandbox is in its life. RUNNING is also the word on the wire and in the store."""

    CREATING = "creating"
    RUNNING = "running"
    KILLING = "killing"
    ENDED = "ended"


class Event(StrEnum):
    """What moves a sandbox on. The values are the reasons in the log."""

    STARTED = "started"
    FAILED = "failed"
    """It could not be created."""
    KILLED = "killed"
    """Its owner asked for it."""
    EXPIRED = "expired"
    """Its time is over."""
    EXITED = "exited"
    """Its first process died."""
    CLOSED = "closed"
    """Its policy could not be enforced."""
    GONE = "gone"
    """Nothing of it is left."""


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.CREATING, Event.STARTED): State.RUNNING,
    (State.CREATING, Event.FAILED): State.KILLING,
    (State.CREATING, Event.EXITED): State.KILLING,
    (State.RUNNING, Event.KILLED): State.KILLING,
    (State.RUNNING, Event.EXPIRED): State.KILLING,
    (State.RUNNING, Event.EXITED): State.KILLING,
    (State.RUNNING, Event.CLOSED): State.KILLING,
    (State.KILLING, Event.GONE): State.ENDED,
}


class IllegalTransition(RuntimeError):
    """An event came in a state that cannot take it: a defect of the program."""


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises :class:`IllegalTransition`."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None
