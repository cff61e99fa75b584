"""One side of a proxied TCP connection: counting, flow control, half-close, reset."""

from __future__ import annotations

import asyncio
import socket
import struct
from enum import IntFlag
from ipaddress import IPv4Address
from typing import Protocol, cast

WRITE_BUFFER = 65_536
"""Bytes waiting to be sent on one side, above which the other side is no longer read."""

_LINGER_RESET = struct.pack("ii", 1, 0)
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)


class Pause(IntFlag):
    """Why a leg is not read."""

    NONE = 0
    PEER_FULL = 1
    """The other side does not keep up."""
    HELD = 2
    """What was read may not be sent on yet."""


class LegOwner(Protocol):
    """Whoever joins two legs."""

    def data(self, leg: Leg, data: bytes) -> None:
        """Bytes came in on `leg`."""

    def ended(self, leg: Leg) -> None:
        """The far end of `leg` will send no more."""

    def lost(self, leg: Leg, error: Exception | None) -> None:
        """`leg` is gone; `error` if it was not closed in good order."""

    def congested(self, leg: Leg) -> None:
        """`leg` became full, or is no longer."""


class Leg(asyncio.Protocol):
    """A TCP connection on one side of the proxy. What comes before it has an owner is kept."""

    __slots__ = (
        "_early",
        "_pause",
        "address",
        "eof_in",
        "eof_out",
        "full",
        "owner",
        "received",
        "sent",
        "transport",
    )

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.owner: LegOwner | None = None
        self.address: IPv4Address | None = None
        """The address dialled; None on the sandbox's side."""
        self.received = 0
        self.sent = 0
        self.eof_in = False
        """Did the far end say that it sends no more?"""
        self.eof_out = False
        """Did we?"""
        self.full = False
        """Does more wait to be sent than should?"""
        self._pause = Pause.NONE
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have the methods of asyncio's, but not their base class.
        self.transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in _KEEPALIVE:
            sock.setsockopt(*option)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        if self.owner is not None:
            self.owner.data(self, data)
        elif not self.closing:
            self._early += data
            self.pause(Pause.HELD)

    def adopt(self, owner: LegOwner) -> None:
        """Belong to `owner` from now on, and tell it what has happened so far."""
        self.owner = owner
        if self._early:
            early, self._early = bytes(self._early), bytearray()
            owner.data(self, early)
        self.resume(Pause.HELD)
        if self.eof_in and self.owner is owner:
            owner.ended(self)

    def eof_received(self) -> bool:
        self.eof_in = True
        if self.owner is not None:
            self.owner.ended(self)
        return True  # half-closed: the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        if self.owner is not None:
            self.owner.lost(self, exc)

    def pause_writing(self) -> None:
        self.full = True
        if self.owner is not None:
            self.owner.congested(self)

    def resume_writing(self) -> None:
        self.full = False
        if self.owner is not None:
            self.owner.congested(self)

    @property
    def closing(self) -> bool:
        """Is it closed, or about to be?"""
        return self.transport is None or self.transport.is_closing()

    def write(self, data: bytes | bytearray) -> None:
        """Send `data`."""
        if data and not self.eof_out and self.transport is not None and not self.closing:
            self.sent += len(data)
            self.transport.write(bytes(data))

    def finish(self) -> None:
        """Say that no more will be sent, after what is waiting."""
        if not self.eof_out and self.transport is not None and not self.transport.is_closing():
            self.eof_out = True
            self.transport.write_eof()

    def close(self) -> None:
        """Close after sending what is waiting."""
        if self.transport is not None:
            self.transport.close()

    def reset(self) -> None:
        """Close at once with a TCP reset, so that the far end knows that it was cut off."""
        if self.transport is None:
            return
        if not self.transport.is_closing():
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.transport.abort()

    def pause(self, why: Pause) -> None:
        """Stop reading until :meth:`resume` was called for every reason."""
        if not self._pause and not self.closing:
            assert self.transport is not None
            self.transport.pause_reading()
        self._pause |= why

    def resume(self, why: Pause) -> None:
        """Take back one reason for not reading."""
        if not self._pause & why:
            return
        self._pause &= ~why
        if not self._pause and not self.closing:
            assert self.transport is not None
            self.transport.resume_reading()
