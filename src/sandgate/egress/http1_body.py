"""Finds where the body of an HTTP/1.x message ends. Pure: no I/O. RFC 9112 sections 6 and 7."""

from __future__ import annotations

import re
from enum import Enum, auto

from sandgate.egress.http1 import CHUNKED

MAX_LINE = 4096
"""Longest chunk-size or trailer line, in bytes."""

MAX_TRAILERS = 16_384
"""Most bytes of trailers after the last chunk."""

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[\t\x20-\x7e\x80-\xff]*")
_NOT_IN_TRAILERS = frozenset((b"host", b"content-length", b"transfer-encoding"))


class FramingError(ValueError):
    """The body breaks the chunked coding; where it ends is anybody's guess."""


class _State(Enum):
    DATA = auto()
    DATA_END = auto()
    SIZE = auto()
    TRAILERS = auto()
    DONE = auto()


class BodyFramer:
    """Says how many bytes of a buffer belong to the current message.

    Lines of the chunked coding are taken whole or not at all, so that nothing is sent on before
    it was judged. The caller keeps what was not taken, at most :data:`MAX_LINE` bytes of it while
    the message lasts, and passes it again with more behind it.
    """

    __slots__ = ("_chunked", "_left", "_state", "_trailers")

    def __init__(self, length: int) -> None:
        """`length` in bytes, or :data:`sandgate.egress.http1.CHUNKED`."""
        self._chunked = length == CHUNKED
        self._left = max(length, 0)
        self._trailers = 0
        if self._chunked:
            self._state = _State.SIZE
        else:
            self._state = _State.DATA if length else _State.DONE

    @property
    def done(self) -> bool:
        """Was the last byte of the message taken?"""
        return self._state is _State.DONE

    @property
    def left(self) -> int:
        """How many bytes follow that need not be looked at."""
        return self._left if self._state is _State.DATA else 0

    def skip(self) -> None:
        """Those that were :attr:`left` have been sent on."""
        assert self._state is _State.DATA
        self._left = 0
        self._state = _State.DATA_END if self._chunked else _State.DONE

    def take(self, buffer: bytes | bytearray) -> int:
        """How many bytes at the start of `buffer` belong to the message. Raises FramingError."""
        offset = 0
        while self._state is not _State.DONE:
            if self._state is _State.DATA:
                step = min(self._left, len(buffer) - offset)
                offset += step
                self._left -= step
                if self._left:
                    break
                self._state = _State.DATA_END if self._chunked else _State.DONE
            else:
                line = _line(buffer, offset)
                if line is None:
                    break
                offset += len(line) + 2
                self._take_line(line)
        return offset

    def _take_line(self, line: bytes) -> None:
        if self._state is _State.DATA_END:
            if line:
                raise FramingError("a chunk is longer than its size")
            self._state = _State.SIZE
        elif self._state is _State.SIZE:
            size = _CHUNK_SIZE.fullmatch(line)
            if size is None:
                raise FramingError("malformed chunk size")
            self._left = int(size[1], 16)
            self._state = _State.DATA if self._left else _State.TRAILERS
        elif not line:
            self._state = _State.DONE
        else:
            self._trailers += len(line) + 2
            trailer = _TRAILER.fullmatch(line)
            if trailer is None or trailer[1].lower() in _NOT_IN_TRAILERS:
                raise FramingError("malformed or forbidden trailer")
            if self._trailers > MAX_TRAILERS:
                raise FramingError(f"more than {MAX_TRAILERS} bytes of trailers")


def _line(buffer: bytes | bytearray, start: int) -> bytes | None:
    """The line that starts at `start`, without its CRLF; None if it is incomplete."""
    end = buffer.find(b"\n", start, start + MAX_LINE)
    if end < 0:
        if len(buffer) - start >= MAX_LINE:
            raise FramingError(f"a line is longer than {MAX_LINE} bytes")
        return None
    if end == start or buffer[end - 1] != 0x0D:
        raise FramingError("a line ends with a bare LF")
    return bytes(buffer[start : end - 1])
