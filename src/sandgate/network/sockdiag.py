"""Ends TCP connections of this network namespace from outside the process that has them.

Formats: linux/inet_diag.h, linux/sock_diag.h. Needs a kernel with CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.network.netlink import Message, NetlinkError, NetlinkSocket, attribute

NETLINK_SOCK_DIAG = 4
_TCP_GETSOCK = 18
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_REQUEST = struct.Struct("=BBBxI")
"""inet_diag_req_v2 up to its socket id: family, protocol, extensions, states."""
_REQUEST_ALL, _LAST = struct.Struct("=BBBB"), struct.Struct("=II")
"""inet_diag_req before its socket id, of which only zeros are of use, and after it: states, 0."""
_ID = slice(4, 52)
"""inet_diag_sockid in an inet_diag_msg: ports, addresses, interface, cookie."""
_PORT = slice(6, 8)
"""The destination's, in an inet_diag_msg."""
_ANY_STATE = 0xFFFFFFFF
_OPEN_HERE = 1 << 1 | 1 << 8
"""ESTABLISHED and CLOSE_WAIT: this end has not closed (include/net/tcp_states.h)."""
_NO_ID = bytes(48)
_BYTECODE = 1
_OPERATION = struct.Struct("=BBH")
_CONDITION = struct.Struct("=BBxxi4s")
_SOURCE, _DESTINATION = 7, 8


_UNFINISHED = 0x7FE & ~(1 << 6 | 1 << 7 | 1 << 10)
"""All states but TIME_WAIT, CLOSE and LISTEN."""
_PORTS = struct.Struct(">HH")
_MAPPED = bytes(10) + b"\xff\xff"
"""Before an IPv4 address in a socket of the other family (RFC 4291, 2.5.5.2)."""
_NO_COOKIE = b"\xff" * 8


@dataclass(frozen=True, slots=True)
class Connection:
    """A TCP connection over IPv4, by its socket at one end."""

    family: int
    """Of the socket."""
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    identity: bytes = b""
    """inet_diag_sockid, where the kernel told it."""

    def reversed(self) -> Connection:
        """The same as its other end has it."""
        return Connection(
            socket.AF_INET,
            self.destination,
            self.destination_port,
            self.source,
            self.source_port,
        )


def connections(diag: NetlinkSocket) -> Iterator[Connection]:
    """The IPv4 connections that have begun and not ended, of sockets of either family.

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    # The older form of the request: it asks for all families at once.
    body = _REQUEST_ALL.pack(0, 0, 0, 0) + _NO_ID + _LAST.pack(_UNFINISHED, 0)
    for payload in diag.dump(Message(_TCP_GETSOCK, 0, body, "list TCP connections")):
        family, identity = payload[0], payload[_ID]
        ends = (identity[4:20], identity[20:36])
        if family == socket.AF_INET6:
            if not all(end.startswith(_MAPPED) for end in ends):
                continue
            ends = (ends[0][12:], ends[1][12:])
        source, destination = (IPv4Address(end[:4]) for end in ends)
        source_port, destination_port = _PORTS.unpack_from(identity)
        yield Connection(family, source, source_port, destination, destination_port, identity)


def exists(diag: NetlinkSocket, connection: Connection) -> bool:
    """Is there a socket of exactly this connection here?

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    ports = _PORTS.pack(connection.source_port, connection.destination_port)
    ends = connection.source.packed.ljust(16, b"\0") + connection.destination.packed.ljust(
        16, b"\0"
    )
    identity = ports + ends + bytes(4) + _NO_COOKIE
    body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY_STATE) + identity
    try:
        found = diag.get(Message(_SOCK_DIAG_BY_FAMILY, 0, body, "find a TCP connection"))
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    # A listener at the address would be found as well.
    return found[_ID][:36] == identity[:36]


def destroy(diag: NetlinkSocket, connection: Connection) -> None:
    """End a connection that :func:`connections` found; both ends see a reset. It may have ended.

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    head = _REQUEST.pack(connection.family, socket.IPPROTO_TCP, 0, _ANY_STATE)
    message = Message(_SOCK_DESTROY, 0, head + connection.identity, "end a TCP connection")
    try:
        diag.execute([message])
    except NetlinkError as error:
        if error.errno != errno.ENOENT:
            raise


def cut(diag: NetlinkSocket, source: IPv4Address, destination: IPv4Address) -> int:
    """End every TCP connection from `source` here to `destination`; returns how many there were.

    Both ends see a reset. Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    found = diag.dump(_list(source, destination, _ANY_STATE))
    for payload in found:
        ports = _PORTS.unpack_from(payload[_ID])
        destroy(
            diag,
            Connection(socket.AF_INET, source, ports[0], destination, ports[1], payload[_ID]),
        )
    return len(found)


def open_to(diag: NetlinkSocket, source: IPv4Address, destination: IPv4Address, port: int) -> int:
    """How many TCP connections from `source` to a port of `destination` are not closed here.

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    found = diag.dump(_list(source, destination, _OPEN_HERE))
    return sum(payload[_PORT] == port.to_bytes(2) for payload in found)


def _list(source: IPv4Address, destination: IPv4Address, states: int) -> Message:
    return Message(
        _SOCK_DIAG_BY_FAMILY,
        0,
        _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, states)
        + _NO_ID
        + attribute(_BYTECODE, _filter(source, destination)),
        "list TCP connections",
    )


def _filter(source: IPv4Address, destination: IPv4Address) -> bytes:
    """A program for the kernel: a jump beyond its end refuses a connection."""
    size = _OPERATION.size + _CONDITION.size
    steps = ((_SOURCE, source), (_DESTINATION, destination))
    program = b""
    for left, (kind, address) in zip((2, 1), steps, strict=True):
        program += _OPERATION.pack(kind, size, left * size + 4)
        program += _CONDITION.pack(socket.AF_INET, 32, -1, address.packed)
    return program
