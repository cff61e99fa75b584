"""One side of a proxied TCP connection: counting, flow control, half-close, reset."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Protocol

from sandgate.egress.pipes import Pipe
from sandgate.egress.reactor import FAILED, LAST, WRITABLE, Reactor

WRITE_BUFFER = 65_536
"""Bytes waiting to be sent on one side, above which the other side is no longer read."""

READ_SIZE = 65_536
BULK = 4 * READ_SIZE
"""Bytes read from one side before the others have their turn; less than that is not worth to be
passed on unseen."""

UNLIMITED = 1 << 62
_FEW = 16_384
"""Bytes at once, at which moving costs as much as copying."""

KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
)
OPTIONS = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), *KEEPALIVE)
"""What every leg's socket has; accepted ones have it from the socket that listens (tcp(7))."""

_LINGER_RESET = struct.pack("ii", 1, 0)


class Pause(IntEnum):
    """Why a leg is not read; one bit each."""

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

    def passed(self, leg: Leg) -> None:
        """`leg` has passed on as much as it was told to: what follows is told again."""


Connected = Callable[["Leg", OSError | None], None]


class Leg:
    """A TCP socket on one side of the proxy.

    What happens to it is told to its owner, never from within a call that only sends or ends.
    """

    __slots__ = (
        "_broken",
        "_bulk",
        "_connected",
        "_last",
        "_left",
        "_pause",
        "_pipe",
        "_reactor",
        "_readable",
        "_sink",
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
        self._pipe: Pipe | None = None
        """What is to be sent before that."""
        self._sink: Leg | None = None
        """Where what comes in goes to, unseen."""
        self._left = 0
        """Bytes that may still go there."""
        self._bulk = False
        """Does much come at once?"""
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
        if self._is_gone:
            return
        if events & WRITABLE and (self._waiting or self._pipe is not None):
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
        if self._waiting or self._pipe is not None:
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
            if not (self._waiting or self._pipe is not None):
                self._shut()

    def close(self) -> None:
        """Close after sending what is waiting."""
        if not self.closing:
            self.closing = True
            if self._waiting or self._pipe is not None:
                self._reactor.lingering.start(self.reset)
            else:
                self._reactor.retire(self._socket)

    def reset(self) -> None:
        """Close at once with a TCP reset, so that the far end knows that it was cut off."""
        if not self._is_gone:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._gone()

    def abort(self) -> None:
        """Close as :meth:`reset` does, and tell the owner."""
        if not self._is_gone:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            self._lose()

    def pass_to(self, other: Leg, most: int = UNLIMITED) -> None:
        """Send on what comes in, `most` bytes of it, to `other` without telling of it.

        Where much comes at once, it does not pass through this process then (splice(2)).
        """
        self._sink, self._left = other, most

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

    @property
    def _is_gone(self) -> bool:
        """Is it closed, with nothing left to be sent before?"""
        return self.closing and not self._waiting and self._pipe is None

    def _read(self) -> None:
        left = BULK
        while not (self.eof_in or self.closing or self._pause):
            if left <= 0:
                self._reactor.turn(self)
                return
            sink = self._sink
            try:
                size = sink._splice(self._socket, self._left) if sink and self._bulk else None
                if size is not None:
                    drained, data = False, b""
                    self._bulk = size > _FEW
                else:
                    most = READ_SIZE if sink is None else min(READ_SIZE, self._left)
                    data = self._socket.recv(most)
                    size = len(data)
                    self._bulk = size == READ_SIZE
                    drained = size < most and not self._last
            except BlockingIOError:
                self._readable = self._last = False
                return
            except OSError:
                self._lose()
                return
            if not size:
                self.eof_in = True
                if self._broken:
                    self._lose()
                elif self.owner is not None:
                    self.owner.ended(self)
                return
            left -= size
            self.received += size
            if drained:
                self._readable = False  # until the next event
            if sink is not None:
                sink.write(data)
                self._pass(size)
            elif self.owner is not None:
                self.owner.data(self, data)
            if drained:
                return

    def _pass(self, size: int) -> None:
        self._left -= size
        if not self._left:
            self._sink = None
            if self.owner is not None:
                self.owner.passed(self)

    def _splice(self, source: socket.socket, most: int) -> int | None:
        """Send what `source` has; its size, 0 at its end, None if it has to be copied.

        Raises OSError if `source` cannot be read, BlockingIOError if it has nothing now.
        """
        if self._waiting or self._pipe is not None:
            return None
        if self.eof_out or self.closing or self._broken:
            return None
        pipes = self._reactor.pipes
        pipe = pipes.take()
        if pipe is None:
            return None
        try:
            size = pipe.fill(source.fileno(), most)
        except OSError:
            pipes.give(pipe)
            raise
        self._pipe = pipe
        self.sent += size
        self._flush()
        if self._pipe is not None:
            self._set_full(True)
        return size

    def _flush(self) -> None:
        try:
            if self._pipe is not None:
                self._pipe.drain(self._socket.fileno())
                self._reactor.pipes.give(self._pipe)
                self._pipe = None
            if self._waiting:
                del self._waiting[: self._socket.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:
            self._break()
            return
        if self._waiting or self._pipe is not None:
            if self.closing:
                self._reactor.lingering.start(self.reset)  # it does take something in
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
        self._drop()
        if self.closing:
            self._gone()
            return
        self._broken = self._readable = self._last = True
        self._set_full(False)
        self._reactor.turn(self)

    def _drop(self) -> None:
        """Forget what waits to be sent."""
        self._waiting.clear()
        if self._pipe is not None:
            self._reactor.pipes.give(self._pipe)
            self._pipe = None

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
        self._drop()
        self._reactor.lingering.stop(self.reset)
        self._reactor.retire(self._socket)
