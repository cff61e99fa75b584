"""A copy of a database that is written to meanwhile."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from sandgate.store import NoteKind, Store
from sandgate.store.backup import copy_database


def test_a_copy_made_while_others_write_is_of_one_moment(tmp_path: Path) -> None:
    path, stop, round_ = tmp_path / "store.db", threading.Event(), [0]
    Store(path).close()

    def write() -> None:
        store = Store(path)
        try:
            while not stop.is_set():
                round_[0] += 1
                text = str(round_[0]).encode() * 2000
                store.write_notes(NoteKind.METRICS, {f"n{number}": text for number in range(50)})
        finally:
            store.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            before = round_[0]
            while round_[0] < before + 2:
                pass
            copy = tmp_path / f"copy{number}.db"
            copy_database(path, copy)
            with sqlite3.connect(copy) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                rows = {data for (data,) in connection.execute("SELECT data FROM notes")}
                count = connection.execute("SELECT count(*) FROM notes").fetchone()[0]
            connection.close()
            assert len(rows) == 1 and count == 50
            assert not copy.with_name(f"{copy.name}-wal").exists()
    finally:
        stop.set()
        writer.join()


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"nothing like it" * 100)
    for name in ("bad.db", "missing.db"):
        with pytest.raises(sqlite3.Error):
            copy_database(tmp_path / name, tmp_path / "copy.db")
