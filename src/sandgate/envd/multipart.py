"""A streaming parser for multipart bodies (RFC 2046, RFC 7578): bytes in, events out. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

_MAX_HEADERS = 16 << 10
_MAX_BOUNDARY = 200


class MultipartError(ValueError):
    """The body is not a multipart message."""


@dataclass(frozen=True, slots=True)
class PartBegin:
    """A part's header fields, names in lower case."""

    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class PartData:
    """Some of a part's content."""

    data: bytes


@dataclass(frozen=True, slots=True)
class PartEnd:
    """The part is complete."""


Event = PartBegin | PartData | PartEnd


class _State(Enum):
    PREAMBLE = auto()
    AFTER_BOUNDARY = auto()
    HEADERS = auto()
    DATA = auto()
    EPILOGUE = auto()


class MultipartParser:
    """Holds no more than one header block or one boundary's length of the body."""

    def __init__(self, boundary: str) -> None:
        """:raises MultipartError: if no body could have that boundary."""
        if not boundary or len(boundary) > _MAX_BOUNDARY or not boundary.isascii():
            raise MultipartError(f"invalid multipart boundary {boundary!r:.80}")
        self._delimiter = b"\r\n--" + boundary.encode()
        # As if a line had ended before: the first boundary may be the very first bytes.
        self._buffer = bytearray(b"\r\n")
        self._state = _State.PREAMBLE
        self._fresh = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` brings.

        :raises MultipartError: if it cannot go on like this.
        """
        self._buffer += data
        while True:
            before = (self._state, len(self._buffer))
            event = self._step()
            if event is not None:
                yield event
            elif before == (self._state, len(self._buffer)):
                return

    def close(self) -> None:
        """The body is over.

        :raises MultipartError: if the last boundary is missing.
        """
        if self._state is not _State.EPILOGUE:
            raise MultipartError("the multipart body ends before its last boundary")

    def _step(self) -> Event | None:
        match self._state:
            case _State.PREAMBLE:
                self._skip_preamble()
                return None
            case _State.AFTER_BOUNDARY:
                self._read_boundary_end()
                return None
            case _State.HEADERS:
                return self._read_headers()
            case _State.DATA:
                return self._read_data()
            case _State.EPILOGUE:
                self._buffer.clear()
                return None

    def _skip_preamble(self) -> None:
        at = self._buffer.find(self._delimiter)
        if at >= 0:
            del self._buffer[: at + len(self._delimiter)]
            self._state = _State.AFTER_BOUNDARY
        else:
            del self._buffer[: max(0, len(self._buffer) - len(self._delimiter))]

    def _read_boundary_end(self) -> None:
        if self._buffer.startswith(b"--"):
            self._state = _State.EPILOGUE
            return
        end = self._buffer.find(b"\r\n")
        if end >= 0 and not self._buffer[:end].strip(b" \t"):
            # The line's end stays: it ends an empty header block too.
            del self._buffer[:end]
            self._state = _State.HEADERS
        elif end >= 0 or len(self._buffer) > _MAX_BOUNDARY:
            raise MultipartError("a multipart boundary is followed by something else")

    def _read_headers(self) -> Event | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEADERS:
                raise MultipartError(f"headers of a part are longer than {_MAX_HEADERS} bytes")
            return None
        headers: dict[str, str] = {}
        for line in self._buffer[2:end].split(b"\r\n") if end > 0 else []:
            name, colon, value = line.partition(b":")
            if not colon:
                raise MultipartError(f"a part has a malformed header line: {bytes(line)!r:.80}")
            text = value.strip().decode(errors="surrogateescape")
            headers[name.strip().lower().decode(errors="replace")] = text
        # The empty line's end stays in front of the content: a boundary may follow at once.
        del self._buffer[: end + 2]
        self._fresh = True
        self._state = _State.DATA
        return PartBegin(headers)

    def _read_data(self) -> Event | None:
        at = self._buffer.find(self._delimiter)
        start = 2 if self._fresh else 0
        if at >= 0:
            data = bytes(self._buffer[start:at])
            if data:
                del self._buffer[:at]
                self._fresh = False
                return PartData(data)
            del self._buffer[: at + len(self._delimiter)]
            self._state = _State.AFTER_BOUNDARY
            return PartEnd()

        # The rest may be the beginning of a boundary.
        end = len(self._buffer) - len(self._delimiter)
        if end <= start:
            return None
        data = bytes(self._buffer[start:end])
        del self._buffer[:end]
        self._fresh = False
        return PartData(data)
