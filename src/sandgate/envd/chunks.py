"""The chunks of a long answer: as few as possible.

HAProxy 2.5 to 2.6.15, 2.7 to 2.7.10 and 2.8 to 2.8.2 may stop reading a fast answer for ever when a
chunk ends where a buffer is full (haproxy/haproxy#2262; seen with 2.6.12 once in some hundred MB).
So the chunks of an answer that has become long are announced far ahead. What is missing of the last
one when the answer ends is filled with messages that say nothing. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_LONG = 1 << 20
_SHARE = 4
"""Of what was sent, one part of so many is announced at most: so much may have to be filled."""
_LONGEST = 32 << 20
_PIECE = 64 << 10

Filler = Callable[[int], bytes]
"""Messages of exactly so many bytes that mean nothing; at least :data:`SHORTEST`."""
SHORTEST = 64


class Chunks:
    """Wraps data into chunks. With a `filler`, chunks may be longer than the data."""

    def __init__(self) -> None:
        self.filler: Filler | None = None
        self._sent = 0
        self._left = 0

    def wrap(self, data: bytes) -> bytes:
        """`data` as it is sent."""
        return self._wrap(data, self._ahead())

    def end(self, last: bytes) -> Iterator[bytes]:
        """The last data and the end of the body, as it is sent, in pieces."""
        if self._left > len(last):
            assert self.filler is not None
            missing = max(self._left - len(last), SHORTEST)
            while missing:
                piece = missing if missing <= _PIECE else min(_PIECE, missing - SHORTEST)
                missing -= piece
                yield self._wrap(self.filler(piece), 0)
        yield self._wrap(last, 0) + b"0\r\n\r\n"

    def _ahead(self) -> int:
        if self.filler is None or self._sent < _LONG:
            return 0
        return min(self._sent // _SHARE, _LONGEST)

    def _wrap(self, data: bytes, ahead: int) -> bytes:
        self._sent += len(data)
        parts = []
        if self._left:
            parts.append(data[: self._left])
            data = data[self._left :]
            self._left -= len(parts[0])
            if not self._left:
                parts.append(b"\r\n")
        if data:
            size = max(len(data), ahead)
            parts += [b"%x\r\n" % size, data]
            self._left = size - len(data)
            if not self._left:
                parts.append(b"\r\n")
        return b"".join(parts)
