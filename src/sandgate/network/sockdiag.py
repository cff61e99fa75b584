"""Ends TCP connections of this network namespace from outside the process that has them.

Formats: linux/inet_diag.h, linux/sock_diag.h. Needs a kernel with CONFIG_INET_DIAG_DESTROY.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import IPv4Address

from sandgate.network.netlink import Message, NetlinkError, NetlinkSocket, attribute

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_REQUEST = struct.Struct("=BBBxI")
"""inet_diag_req_v2 up to its socket id: family, protocol, extensions, states."""
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


def cut(diag: NetlinkSocket, source: IPv4Address, destination: IPv4Address) -> int:
    """End every TCP connection from `source` here to `destination`; returns how many there were.

    Both ends see a reset. Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    found = [payload[_ID] for payload in diag.dump(_list(source, destination, _ANY_STATE))]
    for identity in found:
        body = _REQUEST.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, _ANY_STATE) + identity
        try:
            diag.execute([Message(_SOCK_DESTROY, 0, body, "end a TCP connection")])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:  # it ended by itself
                raise
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
