"""The states of a sandbox and how it moves between them, as a table. Pure.

    CREATING ──STARTED──> RUNNING ──PAUSE──> PAUSING ──STOPPED──> PAUSED
        │                                       │                   │
        │                                    UNDONE               RESUME
        │                                       v                   v
        │                                    RUNNING <─CONTINUED─ RESUMING ──UNDONE──> PAUSED
        │
        └─ FAILED, EXITED ──> KILLING ──GONE──> ENDED

    RUNNING ──SNAPSHOT──> SNAPSHOTTING ──SAVED──> RUNNING

From RUNNING and the states around it KILLED, EXPIRED, EXITED and CLOSED lead to KILLING as well.
Once KILLING, nothing brings a sandbox back.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a sandbox is in its life. RUNNING and PAUSED are the words on the wire and stored."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    RESUMING = "resuming"
    SNAPSHOTTING = "snapshotting"
    KILLING = "killing"
    ENDED = "ended"


class Event(StrEnum):
    """What moves a sandbox on. The values are the reasons in the log."""

    STARTED = "started"
    PAUSE = "pause"
    STOPPED = "stopped"
    """The pause is complete."""
    RESUME = "resume"
    CONTINUED = "continued"
    """It runs again."""
    SNAPSHOT = "snapshot"
    SAVED = "saved"
    """The snapshot was taken, or could not be."""
    UNDONE = "undone"
    """It could not be paused or resumed, and is what it was."""
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


ALIVE = (State.RUNNING, State.PAUSING, State.PAUSED, State.RESUMING, State.SNAPSHOTTING)
"""The states of a sandbox that there is for its users."""
ENDS = (Event.KILLED, Event.EXPIRED, Event.EXITED, Event.CLOSED)
"""What ends such a sandbox."""
SETTLED = (State.RUNNING, State.PAUSED, State.SNAPSHOTTING)
"""Alive, and not just being paused or resumed."""

TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.CREATING, Event.STARTED): State.RUNNING,
    (State.CREATING, Event.FAILED): State.KILLING,
    (State.CREATING, Event.EXITED): State.KILLING,
    (State.RUNNING, Event.PAUSE): State.PAUSING,
    (State.PAUSING, Event.STOPPED): State.PAUSED,
    (State.PAUSING, Event.UNDONE): State.RUNNING,
    (State.PAUSED, Event.RESUME): State.RESUMING,
    (State.RESUMING, Event.CONTINUED): State.RUNNING,
    (State.RESUMING, Event.UNDONE): State.PAUSED,
    (State.RUNNING, Event.SNAPSHOT): State.SNAPSHOTTING,
    (State.SNAPSHOTTING, Event.SAVED): State.RUNNING,
    **{(state, event): State.KILLING for state in ALIVE for event in ENDS},
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
