"""The life of a sandbox as a table."""

from __future__ import annotations

import itertools

import pytest

from sandgate.node.states import TRANSITIONS, Event, IllegalTransition, State, advance


def test_every_event_that_the_table_does_not_know_is_refused() -> None:
    for state, event in itertools.product(State, Event):
        if (state, event) not in TRANSITIONS:
            with pytest.raises(IllegalTransition, match=f"{event} in state {state}"):
                advance(state, event)


def test_nothing_leads_back_to_life() -> None:
    for (state, _), after in TRANSITIONS.items():
        if state is State.KILLING:
            assert after is State.ENDED
        assert state is not State.ENDED
        assert after is not State.CREATING


def test_whatever_there_is_for_users_can_be_ended_at_any_time() -> None:
    for state in set(State) - {State.CREATING, State.KILLING, State.ENDED}:
        for event in (Event.KILLED, Event.EXPIRED, Event.EXITED, Event.CLOSED):
            assert advance(state, event) is State.KILLING


def test_every_state_leads_to_the_end() -> None:
    reached = {State.ENDED}
    for _ in State:
        reached |= {before for (before, _), after in TRANSITIONS.items() if after in reached}
    assert reached == set(State)
