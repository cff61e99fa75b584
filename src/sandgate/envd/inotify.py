"""The kernel's inotify interface, see inotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_ISDIR = 0x40000000

_HEADER = struct.Struct("iIII")
_BUFFER = 64 << 10

# Bound when the module is imported: later, in a sandbox, nothing may be loaded any more.
_libc = ctypes.CDLL(None, use_errno=True)
_inotify_init1 = _libc.inotify_init1
_inotify_init1.argtypes = (ctypes.c_int,)
_inotify_add_watch = _libc.inotify_add_watch
_inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
_inotify_rm_watch = _libc.inotify_rm_watch
_inotify_rm_watch.argtypes = (ctypes.c_int, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One event as the kernel gives it."""

    wd: int
    mask: int
    cookie: int
    name: str
    """Entry of the watched directory; empty for the directory itself."""


def parse_events(data: bytes) -> Iterator[RawEvent]:
    """Cut a buffer that was read from an inotify descriptor."""
    offset = 0
    while offset < len(data):
        wd, mask, cookie, size = _HEADER.unpack_from(data, offset)
        offset += _HEADER.size
        name = data[offset : offset + size].rstrip(b"\0")
        offset += size
        yield RawEvent(wd, mask, cookie, os.fsdecode(name))


class Inotify:
    """One inotify instance. The kernel grants a user few of them, so the daemon has one."""

    def __init__(self) -> None:
        """:raises OSError: if the kernel grants no more."""
        self.fd = _check(_inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")

    def add(self, path: str, mask: int) -> int:
        """Watch the directory at `path`; the same directory has the same number again.

        :raises OSError: if it is gone, or too much is watched already (`ENOSPC`).
        """
        return _check(_inotify_add_watch(self.fd, os.fsencode(path), mask), path)

    def remove(self, wd: int) -> None:
        """Stop watching. A number that is not in use is ignored."""
        _inotify_rm_watch(self.fd, wd)

    def read(self) -> list[RawEvent]:
        """Events that are waiting; none if there are none."""
        try:
            return list(parse_events(os.read(self.fd, _BUFFER)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """End all watches."""
        os.close(self.fd)


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
