"""Receiving messages into memory that is taken once."""

from __future__ import annotations

import array
import mmap
import socket


class Inbox:
    """A buffer for messages of up to `most` bytes, longer ones are cut. For one thread.

    `recv` takes as much memory for each message as the longest could have, and gives back what is
    left over. What else is allocated meanwhile lies behind it, so that the heap of a process which
    lives long grows by that much again and again. Of this, pages that no message came to are never
    there.
    """

    def __init__(self, most: int) -> None:
        self._buffer = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def receive(self, connection: socket.socket, flags: int = 0) -> bytes:
        """The next message; empty at the end of a connection. Raises OSError."""
        return self._buffer[: connection.recv_into(self._buffer, 0, flags)]

    def receive_descriptors(
        self, connection: socket.socket, most: int
    ) -> tuple[bytes, tuple[int, ...]]:
        """The same, with up to `most` descriptors that came with it. Raises OSError."""
        found = array.array("i")
        size, ancillary, _, _ = connection.recvmsg_into(
            [self._buffer], socket.CMSG_LEN(most * found.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                found.frombytes(data[: len(data) - len(data) % found.itemsize])
        return self._buffer[:size], tuple(found)
