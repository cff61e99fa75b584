from __future__ import annotations

import os
from pathlib import Path

from sandgate.supervisor.logfile import is_log, open_log, rotate, tail


def test_a_full_log_is_moved_aside_and_writers_go_on_in_the_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    writer = open_log(path)
    try:
        os.write(writer, b"a" * 100)
        assert not rotate(path, limit=100)
        os.write(writer, b"b")
        assert rotate(path, limit=100)
        os.write(writer, b"after\n")
        assert path.read_bytes() == b"after\n"
        assert (tmp_path / "node.log.1").read_bytes() == b"a" * 100 + b"b"
        assert path.stat().st_mode & 0o777 == 0o640
        os.write(writer, b"c" * 101)
        assert rotate(path, limit=100)
        assert (tmp_path / "node.log.1").read_bytes() == b"after\n" + b"c" * 101
    finally:
        os.close(writer)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["node.log", "node.log.1"]


def test_a_descriptor_is_recognised_as_the_log(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    writer = open_log(path)
    try:
        assert is_log(writer, path)
        assert not is_log(0, path)
        assert not is_log(writer, tmp_path / "missing")
    finally:
        os.close(writer)


def test_the_tail_holds_the_last_lines_of_this_run_only(tmp_path: Path) -> None:
    path = tmp_path / "node.log"
    path.write_text("old\n")
    since = path.stat().st_size
    with path.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(100))
    assert tail(path, since, lines=2) == "line 98\nline 99"
    assert "old" not in tail(path, since, lines=1000)
    path.write_text("new\n")
    assert tail(path, since=10_000) == "new"
    assert tail(tmp_path / "missing", 0) == ""
