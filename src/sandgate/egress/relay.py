"""One side of a proxied TCP connection: counting, flow control, half-close, reset."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from enum import IntFlag
from ipaddress import IPv4Address
from typing import Protocol

from sandgate.egress.reactor import FAILED, LAST, WRITABLE, Reactor

WRITE_BUFFER = 65_536
"""Bytes waiting to be sent on one side, above which the other side is no longer read."""

READ_SIZE = 65_536
_AT_ONCE = 4 * READ_SIZE
"""Bytes read from one side before the others have their turn."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
OPTIONS = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *KEEPALIVE)
"""What every leg's socket has; accepted ones have it from the socket that listens (tcp(7))."""

_LINGER_RESET = struct.pack("ii", 1, 0)


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

    def lost(self, leg: Leg) -> None:
        """`leg` is gone, and not in good order."""

    def congested(self, leg: Leg) -> None:
        """`leg` became full, or is no longer."""


Connected = Callable[["Leg", OSError | None], None]


class Leg:
    """A TCP socket on one side of the proxy.

    What happens to it is told to its owner, never from within a call that only sends or ends.
    """

    __slots__ = (
        "_broken",
        "_connected",
        "_last",
        "_pause",
        "_reactor",
        "_readable",
        "_socket",
        "_waiting",
        "address",
        "closing",
        "eof_in",
        "eof_out",
        "full",
        "owner",
        "received",
        "sent",
    )

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        """`sock` is non-blocking, has :data:`OPTIONS`, and belongs to the leg from now on."""
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
        self.closing = False
        """Is it closed, or about to be?"""
        self._reactor = reactor
        self._socket = sock
        self._pause = 0
        self._waiting = bytearray()
        """What the kernel has not taken yet."""
        self._readable = False
        """May there be something to read?"""
        self._last = False
        """Is it to be read until nothing is left, however little comes at once?"""
        self._broken = False
        """Can nothing be sent any more?"""
        self._connected: Connected | None = None

    def start(self) -> None:
        """Begin to read: the socket is connected."""
        self._reactor.add(self._socket, self)

    def connect(self, address: IPv4Address, port: int, connected: Connected) -> None:
        """Begin to connect; `connected` is called once that is done, or has failed.

        Raises OSError if it fails at once.
        """
        self.address = address
        number = self._socket.connect_ex((str(address), port))
        if number not in (0, errno.EINPROGRESS):
            raise OSError(number, os.strerror(number))
        self._connected = connected
        self._reactor.add(self._socket, self)

    def ready(self, events: int) -> None:
        """The socket is ready for something, or a turn has come."""
        if self._connected is not None:
            connected, self._connected = self._connected, None
            connected(self, self._error() if events & FAILED else None)
        if self.closing and not self._waiting:
            return
        if events & WRITABLE and self._waiting:
            self._flush()
        if events & ~WRITABLE:
            self._readable = True
            if events & LAST:
                self._last = True
            if events & FAILED and self.eof_in and self._error() is not None:
                self._broken = True  # there is nothing to be read that would tell
        if self.eof_in and self._broken:
            self._lose()
        elif self._readable and not self._pause:
            self._read()

    def write(self, data: bytes | bytearray) -> None:
        """Send `data`."""
        if not data or self.eof_out or self.closing or self._broken:
            return
        self.sent += len(data)
        if self._waiting:
            self._waiting += data
        else:
            try:
                taken = self._socket.send(data)
            except BlockingIOError:
                taken = 0
            except OSError:
                self._break()
                return
            if taken == len(data):
                return
            self._waiting += memoryview(data)[taken:]
        if len(self._waiting) > WRITE_BUFFER:
            self._set_full(True)

    def finish(self) -> None:
        """Say that no more will be sent, after what is waiting."""
        if not self.eof_out and not self.closing:
            self.eof_out = True
            if not self._waiting:
                self._shut()

    def close(self) -> None:
        """Close after sending what is waiting."""
        if not self.closing:
            self.closing = True
            if self._waiting:
                self._reactor.lingering.start(self.reset)
            else:
                self._reactor.retire(self._socket)

    def reset(self) -> None:
        """Close at once with a TCP reset, so that the far end knows that it was cut off."""
        if self.closing and not self._waiting:
            return  # closed
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._gone()

    def pause(self, why: Pause) -> None:
        """Stop reading until :meth:`resume` was called for every reason."""
        self._pause |= why

    def resume(self, why: Pause) -> None:
        """Take back one reason for not reading."""
        if self._pause & why:
            self._pause &= ~why
            if not self._pause and self._readable and not self.closing:
                self._reactor.turn(self)

    # Inner workings.

    def _read(self) -> None:
        left = _AT_ONCE
        while not (self.eof_in or self.closing or self._pause):
            if left <= 0:
                self._reactor.turn(self)
                return
            try:
                data = self._socket.recv(READ_SIZE)
            except BlockingIOError:
                self._readable = self._last = False
                return
            except OSError:
                self._lose()
                return
            if not data:
                self.eof_in = True
                if self._broken:
                    self._lose()
                elif self.owner is not None:
                    self.owner.ended(self)
                return
            size = len(data)
            left -= size
            self.received += size
            drained = size < READ_SIZE and not self._last
            if drained:
                self._readable = False  # until the next event
            if self.owner is not None:
                self.owner.data(self, data)
            if drained:
                return

    def _flush(self) -> None:
        try:
            taken = self._socket.send(self._waiting)
        except BlockingIOError:
            return
        except OSError:
            self._break()
            return
        del self._waiting[:taken]
        if self._waiting:
            return
        if self.closing:
            self._gone()
            return
        if self.eof_out:
            self._shut()
        self._set_full(False)

    def _set_full(self, full: bool) -> None:
        if self.full is not full:
            self.full = full
            if self.owner is not None:
                self.owner.congested(self)

    def _shut(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            self._break()

    def _break(self) -> None:
        """Nothing can be sent any more. What was received before that is still read."""
        self._waiting.clear()
        if self.closing:
            self._gone()
            return
        self._broken = self._readable = self._last = True
        self._set_full(False)
        self._reactor.turn(self)

    def _error(self) -> OSError | None:
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def _lose(self) -> None:
        owner = self.owner
        self._gone()
        if owner is not None:
            owner.lost(self)

    def _gone(self) -> None:
        self.closing = True
        self._waiting.clear()
        self._reactor.lingering.stop(self.reset)
        self._reactor.retire(self._socket)
