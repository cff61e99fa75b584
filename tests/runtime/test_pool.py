"""Which cells the pool wants, from what was asked for."""

from __future__ import annotations

from collections import Counter

import pytest

from sandgate.runtime.cells import CellKind
from sandgate.runtime.cgroups import Limits
from sandgate.runtime.pool import Pool, default_size

LIMITS = Limits(cpu_count=2, memory_mb=512, max_pids=256)
BASE, OTHER = CellKind("base", 1024, LIMITS), CellKind("other", 1024, LIMITS)


def settle(pool: Pool, have: Counter[CellKind]) -> Counter[CellKind]:
    """What is there once the pool has got all it wants."""
    for _ in range(1000):
        if (kind := pool.lacks(have)) is not None:
            have[kind] += 1
        elif (kind := pool.superfluous(have)) is not None:
            have[kind] -= 1
        else:
            return +have
    raise AssertionError(f"the pool never has enough: {have}")


@pytest.mark.parametrize(
    ("machine_mb", "size"),
    [(512, 4), (1024, 6), (4096, 27), (24576, 100), (1 << 20, 100)],
)
def test_the_default_is_a_small_part_of_the_memory(machine_mb: int, size: int) -> None:
    assert default_size(machine_mb) == size


@pytest.mark.parametrize("size", [0, 1, 4, 100])
def test_all_are_of_the_first_kind_until_another_is_asked_for(size: int) -> None:
    assert settle(Pool(size, BASE), Counter()) == +Counter({BASE: size})


def test_a_kind_that_is_asked_for_gets_its_share_and_no_more() -> None:
    pool = Pool(100, BASE)
    have = settle(pool, Counter())
    pool.prefer(OTHER)
    have = settle(pool, have)
    assert have[OTHER] == 2 and have[BASE] >= 98
    for _ in range(32):
        pool.prefer(OTHER)
    have = settle(pool, have)
    assert 45 < have[OTHER] < 55 and have.total() <= 102
    for _ in range(64):
        pool.prefer(OTHER)
    assert settle(pool, have) == Counter({OTHER: 100})


@pytest.mark.parametrize("size", [1, 3, 64, 100])
def test_kinds_asked_for_in_turns_make_nothing_come_and_go(size: int) -> None:
    pool, changes = Pool(size, BASE), 0
    have: Counter[CellKind] = Counter()
    for _ in range(100):
        for kind in (BASE, OTHER):
            pool.prefer(kind)
            before = have.copy()
            have = settle(pool, have)
            changes += sum((have - before).values()) + sum((before - have).values())
    assert changes <= 4 * size + 8


def test_many_kinds_have_no_cells_without_end() -> None:
    pool = Pool(1, BASE)
    for number in range(64):
        pool.prefer(CellKind("base", 1024 + number, LIMITS))
    assert settle(pool, Counter()).total() <= 4


def test_a_kind_that_fails_is_left_until_it_is_asked_for() -> None:
    pool = Pool(2, BASE)
    pool.give_up(BASE)
    assert pool.lacks(Counter()) is None
    pool.prefer(BASE)
    assert pool.lacks(Counter()) is BASE
