"""The decision log on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from sandgate.decisions.tally import Subject, Sum
from sandgate.reasons import Reason
from sandgate.store.decisions import (
    KEPT_SECONDS,
    DecisionQuery,
    DecisionStore,
    Logged,
    Recorded,
)

NOW = 1_700_000_000.0
DENIED = Subject("box", "tcp", "192.0.2.1", 22, None, False, Reason.DENIED_ADDRESS, "0.0.0.0/0")
NAMED = Subject("box", "tls", "192.0.2.2", 443, "a.test", True, Reason.ALLOWED_NAME, "*.test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.db"


@pytest.fixture
def store(path: Path) -> Iterator[DecisionStore]:
    made = DecisionStore(path, rows_per_sandbox=10, rows=25)
    yield made
    made.close()


def find(store: DecisionStore, **conditions: Any) -> list[Recorded]:
    return store.find(DecisionQuery("box", conditions.pop("limit", 100), **conditions))


def fill(store: DecisionStore, box: str, ports: range, at: float = NOW) -> None:
    for port in ports:
        subject = DENIED._replace(sandbox_id=box, port=port)
        store.add([(subject, Sum(at + port, at + port, 2, 3, 4, 5))], {}, {box: "me"}, at + port)


def test_the_same_is_added_up_over_restarts(store: DecisionStore, path: Path) -> None:
    store.add([(DENIED, Sum(NOW, NOW)), (NAMED, Sum(NOW, NOW, 1, 1, 2, 3))], {}, {"box": "me"}, NOW)
    store.close()
    assert path.stat().st_mode & 0o777 == 0o600
    again = DecisionStore(path)
    try:
        again.add([(NAMED, Sum(NOW + 5, NOW + 5, 0, 10, 20, 30))], {}, {}, NOW + 5)
        found = find(again)
        assert [row.subject for row in found] == [NAMED, DENIED]
        assert found[0].sum == Sum(NOW, NOW + 5, 1, 11, 22, 33)
        assert again.about("box") == Logged("me")
        assert again.about("nobody") is None
    finally:
        again.close()


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"allowed": True}, [NAMED]),
        ({"allowed": False}, [DENIED]),
        ({"protocol": "tcp"}, [DENIED]),
        ({"name": "a.test"}, [NAMED]),
        ({"destination": "192.0.2.1"}, [DENIED]),
        ({"reason": Reason.ALLOWED_NAME}, [NAMED]),
        ({"since": NOW + 10}, [NAMED]),
        ({"until": NOW + 4}, [DENIED]),
        ({"since": NOW, "until": NOW + 30}, [NAMED, DENIED]),
        ({"name": "b.test"}, []),
    ],
)
def test_conditions(
    store: DecisionStore, conditions: dict[str, Any], expected: list[Subject]
) -> None:
    store.add([(DENIED, Sum(NOW, NOW))], {}, {}, NOW)
    store.add([(NAMED, Sum(NOW + 5, NOW + 20))], {}, {}, NOW)
    store.add([(DENIED._replace(sandbox_id="other"), Sum(NOW, NOW))], {}, {}, NOW)
    assert [row.subject for row in find(store, **conditions)] == expected


def test_pages(store: DecisionStore) -> None:
    fill(store, "box", range(7))
    first = find(store, limit=3)
    second = find(store, limit=3, before=first[-1].id)
    assert [row.subject.port for row in first + second] == [6, 5, 4, 3, 2, 1]


def test_one_sandbox_has_so_many_rows_and_what_goes_is_counted(store: DecisionStore) -> None:
    fill(store, "box", range(8))
    store.add([(DENIED._replace(port=0), Sum(NOW + 50, NOW + 50))], {}, {}, NOW)
    fill(store, "box", range(8, 13))
    assert sorted(row.subject.port for row in find(store)) == [0, *range(4, 13)]
    assert store.about("box") == Logged("me", 0, 3, 6, 21)


def test_all_sandboxes_together_have_so_many_rows(store: DecisionStore) -> None:
    for index in range(4):
        fill(store, f"box{index}", range(8), NOW + index * 100)
    counts = [len(store.find(DecisionQuery(f"box{index}", 100))) for index in range(4)]
    assert counts == [1, 8, 8, 8]
    assert store.about("box0") == Logged("me", 0, 7, 14, 49)


def test_what_could_not_be_recorded_is_counted(store: DecisionStore) -> None:
    store.add([], {"box": 5}, {"box": "me"}, NOW)
    store.add([(DENIED, Sum(NOW, NOW))], {"box": 2}, {}, NOW)
    assert store.about("box") == Logged("me", 7)


def test_after_seven_days_it_is_gone(store: DecisionStore) -> None:
    store.add([(DENIED, Sum(NOW, NOW))], {}, {"box": "me"}, NOW)
    store.add([(NAMED, Sum(NOW, NOW + 60))], {}, {}, NOW + 60)
    store.expire(NOW + KEPT_SECONDS + 1)
    assert [row.subject for row in find(store)] == [NAMED]
    store.expire(NOW + KEPT_SECONDS + 61)
    assert find(store) == [] and store.about("box") is None


def test_a_database_of_another_version_is_begun_anew(path: Path) -> None:
    store = DecisionStore(path)
    store.add([(DENIED, Sum(NOW, NOW))], {}, {}, NOW)
    store.close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("PRAGMA user_version=99"))
    engine.dispose()
    again = DecisionStore(path)
    assert again.find(DecisionQuery("box", 10)) == []
    again.close()
