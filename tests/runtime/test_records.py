"""What a launcher writes down for the next one is found whole, whenever it died."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from sandgate.runtime import linux, records

OLD, NEW = "old" * 5000, "new" * 5000


def test_a_reader_finds_the_old_or_the_new_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "7.json"
    records._replace_text(path, OLD)
    found: set[str] = set()
    ready, done = threading.Event(), threading.Event()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_text())
            ready.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert ready.wait(10)
        for _ in range(500):
            records._replace_text(path, NEW)
            records._replace_text(path, OLD)
    finally:
        done.set()
        reader.join()
    assert OLD in found and found <= {OLD, NEW}
    assert [left.name for left in tmp_path.iterdir()] == ["7.json"]


def test_what_an_interrupted_write_left_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "7.json"
    records._replace_text(path, OLD)
    path.with_suffix(".new").write_text("half of somet")
    records._replace_text(path, NEW)
    assert path.read_text() == NEW
    assert [left.name for left in tmp_path.iterdir()] == ["7.json"]


def test_a_file_system_that_cannot_exchange_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(linux, "exchange", refuse)
    path = tmp_path / "7.json"
    for text in (OLD, NEW):
        records._replace_text(path, text)
        assert path.read_text() == text
    assert [left.name for left in tmp_path.iterdir()] == ["7.json"]
