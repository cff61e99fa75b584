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
        order = list(State)
        assert order.index(after) > order.index(state)


def test_every_state_leads_to_the_end() -> None:
    reached = {State.ENDED}
    for state in reversed(State):
        if any(before is state and after in reached for (before, _), after in TRANSITIONS.items()):
            reached.add(state)
    assert reached == set(State)
