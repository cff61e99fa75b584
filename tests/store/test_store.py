"""What is written is read again, by this version and by later ones."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, text

from sandgate.accounts import OPERATOR
from sandgate.store import (
    Lifecycle,
    ListQuery,
    NetworkConfig,
    NoteKind,
    SandboxRecord,
    SnapshotRecord,
    Store,
    StoreError,
)
from sandgate.store.migrations import SchemaTooNew, migrate

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


def record(number: int, **changes: Any) -> SandboxRecord:
    """The sandbox `i<number>`, started `number` seconds after START."""
    values: dict[str, Any] = {
        "sandbox_id": f"i{number:03}",
        "template": "base",
        "state": "running",
        "started_at": START + timedelta(seconds=number),
        "end_at": START + timedelta(hours=1),
        "cpu_count": 2,
        "memory_mb": 1024,
        "disk_mb": 10240,
        "max_pids": 512,
        "metadata": {"user": "zoë"},
        "env": {"A": "1"},
        "network": NetworkConfig(("1.1.1.1",), (), None, None),
        "internet": None,
        "envd_version": "0.6.13",
        "envd_token": "e" * 64,
        "traffic_token": None,
        "lifecycle": Lifecycle(timeout=300),
    }
    return SandboxRecord(**{**values, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    made = Store(tmp_path / "store.db")
    yield made
    made.close()


def query(**changes: Any) -> ListQuery:
    """All that run."""
    return ListQuery(**{"states": frozenset({"running"}), **changes})


def ids(records: list[SandboxRecord]) -> list[int]:
    """The numbers of sandboxes."""
    return [int(item.sandbox_id[1:]) for item in records]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"internet": False, "traffic_token": "t" * 64, "envd_token": None},
        {"network": NetworkConfig(None, ("0.0.0.0/0",), False, "localhost:${PORT}")},
        {"state": "paused", "pause_mode": "full", "origin": "ssnap"},
        {"lifecycle": Lifecycle(60, auto_pause=True, auto_pause_memory=False, auto_resume=True)},
        {"metadata": {}, "env": {"QUOTE": "'\"\\\n"}, "internet": True},
    ],
)
def test_a_record_comes_back_as_it_was_after_a_restart(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    store = Store(tmp_path / "store.db")
    store.insert(record(1, **changes))
    store.close()
    again = Store(tmp_path / "store.db")
    assert again.all() == [record(1, **changes)]
    again.close()


def test_the_file_and_its_companions_are_readable_by_the_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch(mode=0o644)
    store = Store(tmp_path / "store.db")
    store.insert(record(1))
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    store.close()
    assert set(modes) >= {"store.db", "store.db-wal"}
    assert set(modes.values()) == {0o600}


def test_changes_are_kept(store: Store) -> None:
    store.insert(record(1))
    store.insert(record(2))
    network = NetworkConfig(deny_out=("0.0.0.0/0",))
    store.set_end("i001", START)
    store.set_network("i001", network, True)
    store.delete("i002")
    store.delete("unknown")
    assert store.all() == [record(1, end_at=START, network=network, internet=True)]


def test_lists_are_ordered_filtered_and_cut(store: Store) -> None:
    for number in range(6):
        template = "other" if number == 3 else "base"
        parity = {"parity": str(number % 2), "both": "yes"}
        store.insert(record(number, template=template, metadata=parity))
    assert ids(store.find(query())) == [5, 4, 3, 2, 1, 0]
    assert ids(store.find(query(descending=False))) == [0, 1, 2, 3, 4, 5]
    assert ids(store.find(query(limit=2))) == [5, 4]
    assert ids(store.find(query(template="other"))) == [3]
    assert ids(store.find(query(metadata={"parity": "1", "both": "yes"}))) == [5, 3, 1]
    assert ids(store.find(query(metadata={"parity": "1"}, limit=2))) == [5, 3]
    assert ids(store.find(query(metadata={"parity": "1", "both": "no"}))) == []
    assert ids(store.find(query(started_after=START + timedelta(seconds=4)))) == [5, 4]
    assert ids(store.find(query(states=frozenset({"paused"})))) == []


@pytest.mark.parametrize("descending", [True, False])
def test_pages_hold_everything_once_even_if_all_started_at_the_same_moment(
    store: Store, descending: bool
) -> None:
    for number in range(450):
        store.insert(record(number, started_at=START, metadata={"even": str(number % 2 == 0)}))
    seen: list[int] = []
    after = None
    while page := store.find(
        query(limit=7, after=after, descending=descending, metadata={"even": "True"})
    ):
        seen += ids(page)
        after = (page[-1].started_at, page[-1].sandbox_id)
    assert seen == sorted(range(0, 450, 2), reverse=descending)


def test_a_name_cannot_be_taken_twice(store: Store) -> None:
    store.insert(record(1))
    with pytest.raises(StoreError, match="cannot write") as raised:
        store.insert(record(1, envd_token="s3cret"))
    assert "s3cret" not in str(raised.value) + str(raised.value.__cause__)


def test_a_directory_that_cannot_be_used_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot open the database .*must be able to write"):
        Store(tmp_path / "missing" / "store.db")
    (tmp_path / "bad.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StoreError, match="cannot use the database"):
        Store(tmp_path / "bad.db")


def test_an_old_database_is_moved_on_step_by_step(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'store.db'}")
    assert migrate(engine, ()) == 1

    def add_column(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE sandboxes ADD COLUMN one INTEGER"))

    def fail(connection: Connection) -> None:
        raise RuntimeError("interrupted")

    def count(connection: Connection) -> None:
        connection.execute(text("UPDATE schema_version SET version = version"))

    with pytest.raises(RuntimeError):
        migrate(engine, [add_column, fail])
    assert migrate(engine, [add_column, count]) == 3
    assert migrate(engine, [add_column, count]) == 3
    with pytest.raises(SchemaTooNew, match="schema version 3, this program knows up to 1"):
        migrate(engine, ())
    engine.dispose()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(sandboxes)")]
    connection.close()
    assert columns.count("one") == 1


def test_a_database_from_before_there_were_notes_gets_their_table(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.insert(record(1))
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("DROP TABLE notes")
        _take_pausing_away(connection)
        connection.execute("UPDATE schema_version SET version = 1")
    connection.close()
    store = Store(tmp_path / "store.db")
    store.write_notes(NoteKind.METRICS, {"a": b"1"})
    assert store.all() == [record(1)]
    store.close()


def test_sandboxes_from_before_pausing_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.insert(record(1, lifecycle=Lifecycle(timeout=7, auto_pause=True)))
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        _take_pausing_away(connection)
        connection.execute("UPDATE schema_version SET version = 2")
    connection.close()
    store = Store(tmp_path / "store.db")
    assert store.all() == [record(1)]
    store.set_state("i001", "paused", "full", START)
    assert store.all() == [record(1, state="paused", pause_mode="full", end_at=START)]
    store.close()


def test_what_is_from_before_there_were_owners_is_the_operators(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.db")
    store.insert(record(1))
    snapshot = SnapshotRecord("s1", "i001", "mine", "base", 512, START)
    store.add_snapshot(snapshot)
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        for table in ("sandboxes", "snapshots"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN owner")
        connection.execute("UPDATE schema_version SET version = 3")
    connection.close()
    store = Store(tmp_path / "store.db")
    assert store.all() == [record(1, owner=OPERATOR)]
    assert store.find_snapshot("mine", OPERATOR) == snapshot
    assert store.find_snapshot("mine", "alice") is None
    store.close()


def _take_pausing_away(connection: sqlite3.Connection) -> None:
    for column in ("lifecycle", "pause_mode", "origin", "owner"):
        connection.execute(f"ALTER TABLE sandboxes DROP COLUMN {column}")
    connection.execute("DROP TABLE snapshots")


def test_notes_are_kept_by_kind_and_name(store: Store) -> None:
    store.write_notes(NoteKind.METRICS, {"a": b"1", "b": b"2"})
    store.write_notes(NoteKind.JOURNAL, {"a": b"\x003"})
    store.write_notes(NoteKind.METRICS, {"a": b"4", "c": b"5"})
    found = {name: note.data for name, note in store.notes(NoteKind.METRICS).items()}
    assert found == {"b": b"2", "a": b"4", "c": b"5"} and next(iter(found)) == "b"
    assert (datetime.now(UTC) - store.notes(NoteKind.METRICS)["c"].written_at).seconds < 60
    store.delete_notes(NoteKind.METRICS, ["a", "unknown"])
    store.delete_notes(NoteKind.METRICS, [])
    store.write_notes(NoteKind.METRICS, {})
    assert set(store.notes(NoteKind.METRICS)) == {"b", "c"}
    assert store.notes(NoteKind.JOURNAL)["a"].data == b"\x003"


def test_notes_about_a_sandbox_go_with_it_and_others_stay(store: Store) -> None:
    store.insert(record(1))
    for kind in NoteKind:
        store.write_notes(kind, {"i001": b"x", "i002": b"y"})
    store.delete("i001")
    assert {kind: set(store.notes(kind)) for kind in NoteKind} == {
        NoteKind.METRICS: {"i002"},
        NoteKind.JOURNAL: {"i002"},
        NoteKind.REPETITION: {"i001", "i002"},
        NoteKind.MACHINE: {"i001", "i002"},
    }
