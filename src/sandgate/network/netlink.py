"""Netlink: messages, attributes, and a socket that sends batches and reports what failed.

The kernel handles every request within `send()`, so the answers are in the socket's queue when it
returns and nothing here waits for another process. Formats: linux/netlink.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from sandgate.inbox import Inbox

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800

_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLM_F_DUMP_INTERRUPTED = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

_NESTED = 0x8000
_TYPE_MASK = 0x3FFF

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_SO_ATTACH_FILTER = 26
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
_SEND_BUFFER = 8 << 20
_RECEIVE_BUFFER = 4 << 20
_READ_SIZE = 1 << 18
_DUMP_ATTEMPTS = 10

MAX_ATTRIBUTE = 0xFFFF - 4
"""Most bytes in one attribute: its length field has 16 bits and counts the header."""


class NetlinkError(OSError):
    """The kernel refused a message. `errno` is its reason; the text names the message and what
    the kernel said about it (its "extended acknowledgement"), if anything."""


@dataclass(frozen=True, slots=True)
class Message:
    """One request: netlink type and flags (REQUEST is added), payload, and words for an error."""

    type: int
    flags: int
    body: bytes
    what: str


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded. Raises ValueError when `data` does not fit."""
    length = _ATTRIBUTE.size + len(data)
    if length > 0xFFFF:
        raise ValueError(f"netlink attribute {kind} has {len(data)} bytes; {MAX_ATTRIBUTE} fit")
    return _ATTRIBUTE.pack(length, kind) + data + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes in `data`, as (kind without flags, payload). Stops at anything malformed."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + (-length % 4)


class NetlinkSocket:
    """A netlink socket of the network namespace that the calling thread is in when it is made.

    It stays with that namespace, and keeps it alive until closed.
    """

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol
        )
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            # The FORCE forms pass the system-wide limits; a batch is one datagram and may be large.
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise
        self._sequence = 0
        self._inbox = Inbox(_READ_SIZE)

    def close(self) -> None:
        """Close the socket. Safe to repeat."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor, to wait on. Only for a socket that :meth:`receive` reads."""
        return self._socket.fileno()

    def subscribe(self, group: int) -> None:
        """Receive what the kernel announces to this multicast group. Raises OSError."""
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)

    def attach_filter(self, program: bytes) -> None:
        """Receive only what a program (classic BPF, linux/filter.h) lets through."""
        buffer = ctypes.create_string_buffer(program, len(program))
        described = struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)

    def receive(self) -> list[tuple[int, bytes]]:
        """The messages in the next datagram, as (type, payload), without waiting.

        Raises BlockingIOError if there is none, OSError with ENOBUFS once if some were lost.
        """
        data = self._inbox.receive(self._socket, socket.MSG_DONTWAIT)
        return [(kind, payload) for kind, _, _, payload in _unpack(data)]

    def execute(self, messages: Sequence[Message]) -> None:
        """Send `messages` in one datagram, each acknowledged.

        The kernel goes on after one that fails; raises :class:`NetlinkError` for the first.
        """
        self._exchange(messages, frozenset(range(len(messages))))

    def transaction(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """Send `messages` between `begin` and `end`, as nfnetlink's all-or-nothing batches want it.

        Raises :class:`NetlinkError` for the first that failed; then none took effect.
        """
        # The acknowledgement of the last message comes after all errors of those before it.
        self._exchange([begin, *messages, end], frozenset((len(messages),)))

    def _exchange(self, messages: Sequence[Message], acknowledged: frozenset[int]) -> None:
        first = self._next_sequence(len(messages))
        parts: list[bytes] = []
        for index, message in enumerate(messages):
            flags = message.flags | NLM_F_REQUEST | (NLM_F_ACK if index in acknowledged else 0)
            parts.append(_pack(message, flags, first + index))
        self._socket.send(b"".join(parts))
        waiting = {first + index for index in acknowledged}
        failure: NetlinkError | None = None
        while True:
            try:
                data = self._inbox.receive(self._socket, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, flags, sequence, payload in _unpack(data):
                if kind != _NLMSG_ERROR or not first <= sequence <= self._sequence:
                    continue
                waiting.discard(sequence)
                code = -struct.unpack_from("=i", payload)[0]
                if code and failure is None:
                    what = messages[sequence - first].what
                    failure = _error(code, what, _explanation(flags, payload))
        if failure is not None:
            raise failure
        if waiting:
            raise NetlinkError(0, f"the kernel did not answer: {messages[0].what}")

    def get(self, message: Message) -> bytes:
        """The payload of the one object that a request asks for. Raises :class:`NetlinkError`."""
        sequence = self._next_sequence(1)
        self._socket.send(_pack(message, message.flags | NLM_F_REQUEST, sequence))
        while True:
            for kind, flags, answered, payload in _unpack(self._inbox.receive(self._socket)):
                if answered != sequence:
                    continue
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    raise _error(code, message.what, _explanation(flags, payload))
                return payload

    def _next_sequence(self, count: int) -> int:
        """Reserve `count` sequence numbers (32 bits wide on the wire); returns the first."""
        if self._sequence + count > 0xFFFFFFFF:
            self._sequence = 0
        self._sequence += count
        return self._sequence - count + 1

    def dump(self, message: Message) -> list[bytes]:
        """The payloads of all objects that a dump request lists. Raises :class:`NetlinkError`."""
        for _ in range(_DUMP_ATTEMPTS):
            payloads = self._dump_once(message)
            if payloads is not None:
                return payloads
        raise NetlinkError(0, f"{message.what}: kept changing while it was read")

    def _dump_once(self, message: Message) -> list[bytes] | None:
        self._next_sequence(1)
        flags = message.flags | NLM_F_REQUEST | NLM_F_DUMP
        self._socket.send(_pack(message, flags, self._sequence))
        payloads: list[bytes] = []
        complete = True
        while True:
            for kind, flags, sequence, payload in _unpack(self._inbox.receive(self._socket)):
                if sequence != self._sequence:
                    continue
                if flags & _NLM_F_DUMP_INTERRUPTED:
                    complete = False
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    if code:
                        raise _error(code, message.what, "")
                    return payloads if complete else None
                payloads.append(payload)


def _pack(message: Message, flags: int, sequence: int) -> bytes:
    length = _HEADER.size + len(message.body)
    header = _HEADER.pack(length, message.type, flags, sequence, 0)
    return header + message.body + bytes(-length % 4)


def _unpack(data: bytes) -> Iterable[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + (-length % 4)


def _error(code: int, what: str, explanation: str) -> NetlinkError:
    detail = f" ({explanation})" if explanation else ""
    return NetlinkError(code, f"{what}: {os.strerror(code)}{detail}")


def _explanation(flags: int, payload: bytes) -> str:
    """The text of the extended acknowledgement in an error message, or nothing."""
    if not flags & _NLM_F_ACK_TLVS:
        return ""
    original = _HEADER.unpack_from(payload, 4)[0]
    start = 4 + (_HEADER.size if flags & _NLM_F_CAPPED else original + (-original % 4))
    for kind, value in attributes(payload[start:]):
        if kind == _NLMSGERR_ATTR_MSG:
            return value.rstrip(b"\0").decode(errors="replace")
    return ""
