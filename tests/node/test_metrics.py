"""Samples over a sandbox's life, in bounded memory."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.node.metrics import CAPACITY, History, Meter, Sample
from sandgate.runtime.protocol import Usage


def sample(at: float, cpu: float = 0, memory: int = 1) -> Sample:
    return Sample(at, cpu, memory, 2, 3, 4)


def test_samples_are_found_by_whole_seconds_bounds_included() -> None:
    history = History()
    for second in (10, 15, 20, 25):
        history.add(sample(second + 0.7))
    found = history.between(15, 20)
    assert [item.at for item in found] == [15.7, 20.7]
    assert len(history.between(None, None)) == 4
    assert history.between(26, None) == history.between(None, 9) == []
    assert history.last() == sample(25.7)
    assert History().last() is None


@pytest.mark.parametrize("count", [0, 1, CAPACITY, CAPACITY + 1, 3000, 17_280])
def test_any_life_is_covered_in_bounded_memory(count: int) -> None:
    history = History()
    for number in range(count):
        history.add(sample(5 * number))
    assert len(history) <= CAPACITY
    moments = [item.at for item in history.between(None, None)]
    assert moments == sorted(moments)
    recent = min(count, CAPACITY // 2)
    assert moments[len(moments) - recent :] == [5 * i for i in range(count - recent, count)]
    gaps = [after - before for before, after in pairwise([0.0, *moments])]
    assert max(gaps, default=0) <= max(5, 5 * count / 50), "no part of its life is left out"


def test_of_samples_that_become_one_the_peak_of_memory_and_the_mean_load_stay() -> None:
    history = History()
    for number in range(CAPACITY + 1):
        history.add(sample(number, cpu=number % 2 * 100, memory=1000 if number == 3 else 1))
    merged = history.between(0, CAPACITY // 2 - 1)
    assert 200 < len(merged) <= CAPACITY // 4 + 1
    assert 1000 in [item.memory for item in merged[:4]]
    assert 40 < sum(item.cpu_pct for item in merged) / len(merged) < 60


@given(st.lists(st.floats(0, 1e9), max_size=40))
def test_a_clock_that_jumps_is_survived(moments: list[float]) -> None:
    meter = Meter(cpu_count=1)
    for number in range(CAPACITY + 600):
        wall = moments[number * len(moments) // (CAPACITY + 600)] if moments else 7.0
        meter.read(usage(0), moment=number, wall=wall)
    found = [item.at for item in meter.history.between(None, None)]
    assert found == sorted(found) and len(found) <= CAPACITY


def test_a_history_comes_back_from_what_it_packed() -> None:
    history = History()
    history.add(sample(1.5, 12.5))
    assert History(history.pack()).between(None, None) == [sample(1.5, 12.5)]
    with pytest.raises(struct.error):
        History(b"damaged")


def usage(cpu_seconds: float) -> Usage:
    return Usage(int(cpu_seconds * 1e9), 1, 2, 3, 4)


def test_load_is_counted_over_all_processors_since_the_last_reading() -> None:
    meter = Meter(cpu_count=2)
    meter.read(usage(100), moment=10, wall=1000)
    assert len(meter.history) == 0, "the first is what the others are counted from"
    meter.read(usage(105), moment=15, wall=1005)
    meter.read(usage(200), moment=20, wall=1010)
    meter.read(usage(150), moment=25, wall=1015)
    assert [item.cpu_pct for item in meter.history.between(None, None)] == [50, 100, 0]


def test_time_without_readings_does_not_count() -> None:
    meter = Meter(cpu_count=1)
    meter.read(usage(0), moment=0, wall=0)
    meter.rest()
    meter.read(usage(0), moment=1000, wall=1000)
    assert len(meter.history) == 0
    meter.read(usage(5), moment=1005, wall=1005)
    assert [item.cpu_pct for item in meter.history.between(None, None)] == [100]
