"""The bounded log of a node in the background."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_LOG_BYTES = 10 * 1024 * 1024
"""Above this the log is moved to `node.log.1`; at most twice this is kept."""


def open_log(path: Path) -> int:
    """A descriptor that appends to `path` (0640), made if missing."""
    return os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
    )


def rotate(path: Path, limit: int = MAX_LOG_BYTES) -> bool:
    """Copy the log aside and empty it if it is above `limit` bytes. True if that was done.

    The file is emptied rather than renamed because every component holds it open for appending.
    What is written between the copy and the emptying is lost: some microseconds.
    """
    if path.stat().st_size <= limit:
        return False
    old = path.with_name(f"{path.name}.1")
    shutil.copyfile(path, old)
    old.chmod(0o640)
    os.truncate(path, 0)
    return True


def is_log(descriptor: int, path: Path) -> bool:
    """Does `descriptor` write to the file at `path`?"""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def tail(path: Path, since: int, lines: int = 20) -> str:
    """The last lines written to the log after offset `since`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            # Emptied by rotation meanwhile: all of it is new.
            start = since if since <= size else 0
            file.seek(max(start, size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
