"""Files that are replaced whole, in a directory where others may have put something."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sandgate.durable import replace_file


def test_a_file_is_replaced_and_not_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    path = tmp_path / "file"
    path.symlink_to(victim)
    (tmp_path / f".file.{os.getpid()}").symlink_to(victim)
    replace_file(path, b"secret")
    assert victim.read_text() == "untouched"
    assert not path.is_symlink()
    assert path.read_bytes() == b"secret"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "victim"]


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize(("mode", "group"), [(0o600, None), (0o640, 12345), (0o644, None)])
def test_the_mode_and_the_group_are_those_that_were_asked_for(
    tmp_path: Path, umask: int, mode: int, group: int | None
) -> None:
    path = tmp_path / "file"
    before = os.umask(umask)
    try:
        replace_file(path, b"", mode=mode, group=group)
    finally:
        os.umask(before)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (mode, os.getuid())
    assert found.st_gid == (os.getgid() if group is None else group)


def test_what_cannot_be_replaced_stays_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (path / "inside").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        replace_file(path, b"other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (path / "inside").is_dir()
