"""The sandbox's users and groups, read from its own /etc.

The C library's look-ups are of no use here: they load plug-ins from the sandbox's disk. Both files
belong to the sandbox and may hold anything, so they are read bounded and bad lines are skipped.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

_MAX_FILE = 1 << 20
_MAX_ID = (1 << 32) - 2
_MAX_GROUPS = 1024

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class User:
    """A user that commands can run as and files can belong to."""

    name: str
    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()
    """All groups, the primary one first."""


@dataclass(frozen=True, slots=True)
class _Group:
    name: str
    gid: int
    members: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Users:
    by_name: dict[str, User] = field(default_factory=dict)
    by_uid: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Groups:
    listed: tuple[_Group, ...] = ()
    by_gid: dict[int, str] = field(default_factory=dict)


def parse_passwd(text: str) -> Iterator[User]:
    """Users of a passwd(5) file, without their supplementary groups. Bad lines are skipped."""
    for line in text.split("\n"):
        parts = line.split(":")
        if len(parts) != 7 or not parts[0] or "\0" in line:
            continue
        uid, gid = _number(parts[2]), _number(parts[3])
        if uid is None or gid is None:
            continue
        home = parts[5] if parts[5].startswith("/") else "/"
        yield User(parts[0], uid, gid, home)


def _parse_group(text: str) -> Iterator[_Group]:
    for line in text.split("\n"):
        parts = line.split(":")
        if len(parts) != 4 or not parts[0]:
            continue
        gid = _number(parts[2])
        if gid is not None:
            yield _Group(parts[0], gid, frozenset(parts[3].strip().split(",")))


def _number(text: str) -> int | None:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        return None
    value = int(text)
    return value if value <= _MAX_ID else None


class _CachedFile(Generic[_T]):
    """A file's parsed content, read again when the file has changed."""

    def __init__(self, path: Path, parse: Callable[[str], _T], empty: _T) -> None:
        self._path = path
        self._parse = parse
        self._content = empty
        self._empty = empty
        self._stamp: tuple[int, int, int, int] | None = None

    def content(self) -> _T:
        try:
            info = self._path.stat()
            stamp = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size)
            if stamp != self._stamp:
                self._content = self._parse(_read_bounded(self._path))
                self._stamp = stamp
        except OSError:
            self._content, self._stamp = self._empty, None
        return self._content


def _read_bounded(path: Path) -> str:
    # Not blocking: the sandbox may have put a FIFO there.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{path} is not a regular file")
        return file.read(_MAX_FILE).decode(errors="replace")


def _index_users(text: str) -> _Users:
    users = _Users()
    for user in parse_passwd(text):
        users.by_name.setdefault(user.name, user)
        users.by_uid.setdefault(user.uid, user.name)
    return users


def _index_groups(text: str) -> _Groups:
    groups = _Groups(tuple(_parse_group(text)))
    for group in groups.listed:
        groups.by_gid.setdefault(group.gid, group.name)
    return groups


class UserDatabase:
    """Looks users up in `<etc>/passwd` and `<etc>/group`."""

    def __init__(self, etc: Path = Path("/etc")) -> None:
        self._users = _CachedFile(etc / "passwd", _index_users, _Users())
        self._groups = _CachedFile(etc / "group", _index_groups, _Groups())

    def find(self, name: str) -> User | None:
        """The user called `name` with all groups, or None."""
        user = self._users.content().by_name.get(name)
        if user is None:
            return None
        groups = _groups_of(user, self._groups.content().listed)
        return User(user.name, user.uid, user.gid, user.home, groups)

    def user_name(self, uid: int) -> str:
        """Name of the user with this uid, or the uid in decimal."""
        return self._users.content().by_uid.get(uid, str(uid))

    def group_name(self, gid: int) -> str:
        """Name of the group with this gid, or the gid in decimal."""
        return self._groups.content().by_gid.get(gid, str(gid))


def _groups_of(user: User, groups: Iterable[_Group]) -> tuple[int, ...]:
    found = dict.fromkeys([user.gid])
    found.update(dict.fromkeys(group.gid for group in groups if user.name in group.members))
    return tuple(found)[:_MAX_GROUPS]
