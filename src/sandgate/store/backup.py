"""A consistent copy of a database that is in use, by SQLite's own means."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

_PAGES = 512
"""Copied between two looks at whether somebody wants to write."""


def copy_database(source: Path, target: Path) -> None:
    """Write what `source` holds at one moment to the new file `target`. Raises sqlite3.Error.

    Writers are not kept waiting; what they write meanwhile is in the copy, or is not, as a whole.
    """
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=rw", uri=True)) as read,
        closing(sqlite3.connect(target)) as write,
    ):
        read.execute("PRAGMA busy_timeout=10000")
        read.backup(write, pages=_PAGES, sleep=0.01)
        # A file of its own, without a log beside it.
        write.execute("PRAGMA journal_mode=DELETE")
