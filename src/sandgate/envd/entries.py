"""`EntryInfo`: what a client is told about a file."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Any

from sandgate.envd import xattrs
from sandgate.envd.users import UserDatabase

_NANOSECONDS = 1_000_000_000
_YEARS_ON_THE_WIRE = range(-62_135_596_800, 253_402_300_800)  # 0001 to 9999, as in protobuf

_LETTERS: tuple[tuple[str, Callable[[int], bool]], ...] = (
    ("d", stat.S_ISDIR),
    ("L", stat.S_ISLNK),
    ("D", lambda mode: stat.S_ISBLK(mode) or stat.S_ISCHR(mode)),
    ("p", stat.S_ISFIFO),
    ("S", stat.S_ISSOCK),
    ("u", lambda mode: bool(mode & stat.S_ISUID)),
    ("g", lambda mode: bool(mode & stat.S_ISGID)),
    ("c", stat.S_ISCHR),
    ("t", lambda mode: bool(mode & stat.S_ISVTX)),
)


def entry_info(path: str, users: UserDatabase, shown_path: str | None = None) -> dict[str, Any]:
    """The entry at `path`, which is not followed if it is a symbolic link.

    As in E2B a link has the type and mode of what it leads to, and its own size and owner.

    :param shown_path: the path to report, if another.
    :raises OSError: if there is no such entry, or it cannot be read.
    """
    info = os.lstat(path)
    name = os.path.basename(path.rstrip("/")) or "/"
    entry: dict[str, Any] = {
        "name": printable(name),
        "path": printable(shown_path or path),
        "size": str(info.st_size),
        "permissions": permissions(info.st_mode),
        "owner": printable(users.user_name(info.st_uid)),
        "group": printable(users.group_name(info.st_gid)),
    }
    if info.st_mtime_ns // _NANOSECONDS in _YEARS_ON_THE_WIRE:
        entry["modifiedTime"] = timestamp(info.st_mtime_ns)

    mode = info.st_mode
    if stat.S_ISLNK(mode):
        target = _resolve_link(path)
        entry["symlinkTarget"] = printable(target)
        try:
            mode = os.stat(target).st_mode
        except OSError:
            mode = 0
    entry["type"] = _file_type(mode)
    entry["mode"] = stat.S_IMODE(mode) & 0o777
    metadata = xattrs.read(path)
    if metadata:
        entry["metadata"] = metadata
    return entry


def printable(text: str) -> str:
    """`text` with bytes that are not UTF-8 replaced, so that it can be JSON."""
    return os.fsencode(text).decode(errors="replace")


def _resolve_link(path: str) -> str:
    try:
        return os.path.realpath(path, strict=True)
    except OSError:
        return path


def _file_type(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "FILE_TYPE_FILE"
    if stat.S_ISDIR(mode):
        return "FILE_TYPE_DIRECTORY"
    if stat.S_ISLNK(mode):
        return "FILE_TYPE_SYMLINK"
    return "FILE_TYPE_UNSPECIFIED"


def permissions(mode: int) -> str:
    """Mode as Go's `fs.FileMode` writes it: `-rw-r--r--`, `dtrwxrwxrwx`, `Lrwxrwxrwx`."""
    letters = "".join(letter for letter, applies in _LETTERS if applies(mode))
    return (letters or "-") + stat.filemode(mode & 0o777)[1:]


def timestamp(nanoseconds: int) -> str:
    """RFC 3339 in UTC with nanoseconds.

    :param nanoseconds: since the epoch, from year 1 to 9999.
    """
    seconds, fraction = divmod(nanoseconds, _NANOSECONDS)
    date = time.gmtime(seconds)
    return (
        f"{date.tm_year:04}-{date.tm_mon:02}-{date.tm_mday:02}"
        f"T{date.tm_hour:02}:{date.tm_min:02}:{date.tm_sec:02}.{fraction:09}Z"
    )
