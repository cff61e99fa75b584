"""Pipes through which the kernel moves bytes from socket to socket without copying: splice(2)."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

SIZE = 1 << 20
"""Bytes that a pipe takes; what the kernel lets an unprivileged process have."""

MOST = 16
"""Most pipes at once, which bounds what bytes under way in them cost. Who gets none copies."""

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """A pipe, and how many bytes are in it."""

    __slots__ = ("_read", "_write", "held")

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # the user has many already: a small one will do
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, SIZE)
        self.held = 0

    def fill(self, descriptor: int, most: int) -> int:
        """Move at most so many bytes in from a socket; 0 if it has ended.

        Raises BlockingIOError if there are none now, or OSError. The pipe must be empty.
        """
        self.held = os.splice(descriptor, self._write, min(most, SIZE), flags=_FLAGS)
        return self.held

    def drain(self, descriptor: int) -> None:
        """Move what is in it to a socket. Raises BlockingIOError when that takes no more now."""
        while self.held:
            self.held -= os.splice(self._read, descriptor, self.held, flags=_FLAGS)

    def close(self) -> None:
        """Close it; what it holds is lost."""
        os.close(self._read)
        os.close(self._write)


class Pipes:
    """Lends pipes."""

    __slots__ = ("_idle", "_made")

    def __init__(self) -> None:
        self._idle: list[Pipe] = []
        self._made = 0

    def take(self) -> Pipe | None:
        """An empty pipe, if there is one left."""
        if self._idle:
            return self._idle.pop()
        if self._made >= MOST:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None  # no descriptors left
        self._made += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take a pipe back. What it still holds is lost."""
        if pipe.held:
            pipe.close()
            self._made -= 1
        else:
            self._idle.append(pipe)
