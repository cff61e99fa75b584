"""The machine's own IPv4 addresses, asked of the kernel (rtnetlink(7), RTM_GETADDR)."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from ipaddress import IPv4Address

MAX_AGE = 1.0
"""Seconds for which the last answer of the kernel is good."""

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_MESSAGE = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


class OwnAddresses:
    """The addresses of this network namespace. Works without privileges."""

    __slots__ = ("_addresses", "_clock", "_read_at", "_socket")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.settimeout(1)
        self._addresses: frozenset[IPv4Address] = frozenset()
        self._read_at = float("-inf")

    def current(self) -> frozenset[IPv4Address]:
        """The addresses, at most :data:`MAX_AGE` old. Raises OSError if the kernel won't say."""
        now = self._clock()
        if now - self._read_at > MAX_AGE:
            self._addresses = self._dump()
            self._read_at = now
        return self._addresses

    def close(self) -> None:
        """Close the netlink socket."""
        self._socket.close()

    def _dump(self) -> frozenset[IPv4Address]:
        request = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
        length = _MESSAGE.size + len(request)
        flags = _NLM_F_REQUEST | _NLM_F_DUMP
        self._socket.send(_MESSAGE.pack(length, _RTM_GETADDR, flags, 1, 0) + request)
        found: set[IPv4Address] = set()
        while not _collect(self._socket.recv(1 << 16), found):
            pass
        return frozenset(found)


def _collect(datagram: bytes, found: set[IPv4Address]) -> bool:
    """Add the addresses in one datagram to `found`. True once the dump is complete."""
    offset = 0
    while offset < len(datagram):
        length, kind, *_ = _MESSAGE.unpack_from(datagram, offset)
        body = offset + _MESSAGE.size
        if kind == _NLMSG_DONE:
            return True
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", datagram, body)
            raise OSError(-code, "the kernel refused to list addresses")
        if kind == _RTM_NEWADDR:
            position = body + _IFADDRMSG.size
            while position < offset + length:
                size, attribute = _ATTRIBUTE.unpack_from(datagram, position)
                # Point-to-point links carry the far end as IFA_ADDRESS: harmless to deny as well.
                if attribute in (_IFA_LOCAL, _IFA_ADDRESS):
                    found.add(IPv4Address(datagram[position + 4 : position + 8]))
                position += (size + 3) & ~3
        offset += (length + 3) & ~3
    return False
