"""Reads the server name out of a TLS ClientHello, however it is cut up. Pure: no I/O.

Wire format: RFC 8446 sections 5.1 (records) and 4.1.2 (ClientHello), RFC 6066 section 3 (server
name). The handshake message is put together over TCP segments and over TLS records, because a
middlebox that reads the first record alone can be passed by.
"""

from __future__ import annotations

import struct

from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.policy import normalise_name

MAX_MESSAGE = 65_536
"""Largest ClientHello that is read, in bytes."""

MAX_RECORDS = 1024
"""Most TLS records one ClientHello may be spread over; bounds what framing adds to the message."""

_RECORD_HEADER = 5
_MESSAGE_HEADER = 4
_HANDSHAKE = 22
_CLIENT_HELLO = 1
_MAX_FRAGMENT = 16_384
_EXTENSION = struct.Struct("!HH")
_SERVER_NAME = 0
_HOST_NAME = 0


class _Malformed(Exception):
    """The message does not follow the grammar."""


class ClientHelloParser:
    """Feed it what the client sends until it answers.

    The answer depends on the bytes alone, never on how they were segmented.
    """

    __slots__ = ("_message", "_offset", "_records", "_result", "raw")

    def __init__(self) -> None:
        self.raw = bytearray()
        """Everything fed so far, to be sent on once the connection is allowed."""
        self._message = bytearray()
        self._offset = 0
        self._records = 0
        self._result: str | NoName | None = None

    def feed(self, data: bytes) -> str | NoName | None:
        """Take in `data`. None: more is needed. Else the normalised name, or why there is none."""
        self.raw += data
        if self._result is None:
            reason = self._advance()
            if reason is not None:
                self._result = NoName(reason)
        return self._result

    def _advance(self) -> NoNameReason | None:
        """Consume complete records. Sets the result, or returns why there will be no name."""
        raw = self.raw
        while self._result is None:
            start = self._offset
            available = len(raw) - start
            if available > 0 and raw[start] != _HANDSHAKE:
                return NoNameReason.TLS_MALFORMED if self._records else NoNameReason.NOT_TLS
            if available > 1 and raw[start + 1] != 3:
                return NoNameReason.TLS_MALFORMED if self._records else NoNameReason.NOT_TLS
            if available < _RECORD_HEADER:
                return None
            length = int.from_bytes(raw[start + 3 : start + 5], "big")
            if not 0 < length <= _MAX_FRAGMENT:
                return NoNameReason.TLS_MALFORMED
            if self._records == MAX_RECORDS:
                return NoNameReason.TLS_TOO_LARGE
            body = start + _RECORD_HEADER
            if available < _RECORD_HEADER + length:
                # Of an incomplete record only the message's header is judged, to refuse at once.
                if len(self._message) >= _MESSAGE_HEADER:
                    return None
                return self._check_header(self._message + raw[body : body + _MESSAGE_HEADER])
            self._message += raw[body : body + length]
            self._offset = body + length
            self._records += 1
            if (reason := self._check_header(self._message)) is not None:
                return reason
            if len(self._message) >= _MESSAGE_HEADER:
                size = _MESSAGE_HEADER + int.from_bytes(self._message[1:4], "big")
                if len(self._message) > size:  # nothing may follow a ClientHello in its record
                    return NoNameReason.TLS_MALFORMED
                if len(self._message) == size:
                    self._result = _server_name(bytes(self._message[_MESSAGE_HEADER:]))
        return None

    @staticmethod
    def _check_header(message: bytearray) -> NoNameReason | None:
        if message and message[0] != _CLIENT_HELLO:
            return NoNameReason.TLS_MALFORMED
        if len(message) >= _MESSAGE_HEADER and int.from_bytes(message[1:4], "big") > MAX_MESSAGE:
            return NoNameReason.TLS_TOO_LARGE
        return None


def _server_name(hello: bytes) -> str | NoName:
    try:
        extensions = _extensions(hello)
        kinds = [kind for kind, _ in extensions]
        if kinds.count(_SERVER_NAME) > 1:
            return NoName(NoNameReason.TLS_SEVERAL_NAMES)
        if len(kinds) != len(set(kinds)):
            return NoName(NoNameReason.TLS_MALFORMED)  # RFC 8446 4.2: one of each type
        for kind, body in extensions:
            if kind == _SERVER_NAME:
                return _host_name(body)
    except _Malformed:
        return NoName(NoNameReason.TLS_MALFORMED)
    return NoName(NoNameReason.TLS_NO_SERVER_NAME)


def _extensions(hello: bytes) -> list[tuple[int, bytes]]:
    reader = _Reader(hello)
    reader.take(2 + 32)  # legacy version, random
    if len(reader.vector(1)) > 32:
        raise _Malformed  # session id
    suites = reader.vector(2)
    if len(suites) < 2 or len(suites) % 2:
        raise _Malformed
    if not reader.vector(1):
        raise _Malformed  # compression methods
    if reader.at_end:
        return []
    block = reader.vector(2)
    if not reader.at_end:
        raise _Malformed
    found = []
    offset, end = 0, len(block)
    while offset < end:
        start = offset + _EXTENSION.size
        if start > end:
            raise _Malformed
        kind, length = _EXTENSION.unpack_from(block, offset)
        offset = start + length
        if offset > end:
            raise _Malformed
        found.append((kind, block[start:offset]))
    return found


def _host_name(extension: bytes) -> str | NoName:
    outer = _Reader(extension)
    names = _Reader(outer.vector(2))
    if not outer.at_end or names.at_end:
        raise _Malformed
    kind = names.take(1)[0]
    host = names.vector(2)
    if not names.at_end:
        return NoName(NoNameReason.TLS_SEVERAL_NAMES)
    if kind != _HOST_NAME:
        raise _Malformed
    try:
        name = normalise_name(host.decode("ascii"))
    except UnicodeDecodeError:
        name = None
    return name if name is not None else NoName(NoNameReason.TLS_INVALID_NAME)


class _Reader:
    """Reads TLS vectors off a byte string. Raises :class:`_Malformed` past the end."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    @property
    def at_end(self) -> bool:
        return self._offset == len(self._data)

    def take(self, count: int) -> bytes:
        end = self._offset + count
        if end > len(self._data):
            raise _Malformed
        taken = self._data[self._offset : end]
        self._offset = end
        return taken

    def vector(self, width: int) -> bytes:
        """A vector whose length stands before it in `width` bytes."""
        return self.take(int.from_bytes(self.take(width), "big"))
