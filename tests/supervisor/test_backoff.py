from __future__ import annotations

from sandgate.supervisor.backoff import LONGEST_DELAY, STABLE_AFTER, Backoff


def test_delays_double_up_to_a_second() -> None:
    backoff = Backoff()
    assert [backoff.died(0.0) for _ in range(7)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def test_a_stable_run_starts_over() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.died(0.0)
    assert [backoff.died(STABLE_AFTER) for _ in range(2)] == [0.0, 0.0]
    assert [backoff.died(0.0) for _ in range(2)] == [0.1, 0.2]


def test_thousands_of_deaths_keep_the_longest_delay() -> None:
    backoff = Backoff(failures=5000)
    assert backoff.died(0.0) == LONGEST_DELAY
