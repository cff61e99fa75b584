"""Waits for the sockets of proxied connections: one epoll of its own, watched by the event loop.

A transport of the event loop costs several times what a connection through the gateway costs
otherwise. Here a socket is registered once, edge-triggered (epoll(7)), and never again: whoever
handles it remembers what it may still read and write.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Protocol

from sandgate.egress.pipes import Pipes
from sandgate.egress.timeouts import Timeouts

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT
FAILED = select.EPOLLERR | select.EPOLLHUP
LAST = FAILED | select.EPOLLRDHUP | select.EPOLLPRI
"""Events after which a short read does not mean that nothing is left: the far end has ended, or
sent urgent data, at which reads stop."""

LINGER_SECONDS = 30.0
"""How long the far end of what is closed may take in nothing of what was sent before."""

_EDGES = READABLE | WRITABLE | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
_BATCH = 128
"""Most events that are handled before the event loop has its turn."""


class Handler(Protocol):
    """Whoever a socket belongs to."""

    def ready(self, events: int) -> None:
        """These events (epoll's) have come, or none: the turn that was asked for has."""

    def abort(self) -> None:
        """Close at once: :meth:`ready` has failed."""


class Reactor:
    """Tells handlers what their sockets are ready for. Belongs to one event loop."""

    __slots__ = (
        "_epoll",
        "_handlers",
        "_loop",
        "_retired",
        "_running",
        "_turns",
        "lingering",
        "pipes",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._turns: dict[Handler, None] = {}
        self._retired: list[socket.socket] = []
        self._running = False
        self.lingering = Timeouts(loop, LINGER_SECONDS)
        """For what is closed and still has something to send."""
        self.pipes = Pipes()
        loop.add_reader(self._epoll.fileno(), self._run)

    def add(self, sock: socket.socket, handler: Handler) -> None:
        """Tell `handler` of every change of `sock` from now on, and of how it is now."""
        self._handlers[sock.fileno()] = handler
        self._epoll.register(sock, _EDGES)

    def retire(self, sock: socket.socket) -> None:
        """Tell nobody of `sock` any more, and close it."""
        self._handlers.pop(sock.fileno(), None)
        if self._running:
            # Not yet: events that wait to be told must not be taken for those of another socket
            # that gets the same number.
            self._retired.append(sock)
        else:
            sock.close()

    def turn(self, handler: Handler) -> None:
        """Give `handler` a turn, without an event, once the others have had theirs."""
        if not self._turns and not self._running:
            self._loop.call_soon(self._run)
        self._turns[handler] = None

    def close(self) -> None:
        """Watch nothing any more."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _run(self) -> None:
        if self._epoll.closed:
            return
        self._running = True
        for descriptor, events in self._epoll.poll(0, _BATCH):
            handler = self._handlers.get(descriptor)
            if handler is not None:
                self._tell(handler, events)
        turns, self._turns = self._turns, {}
        for handler in turns:
            self._tell(handler, 0)
        self._running = False
        while self._retired:
            self._retired.pop().close()
        if self._turns:
            self._loop.call_soon(self._run)

    def _tell(self, handler: Handler, events: int) -> None:
        # Whatever goes wrong with one, it must not cost the others their events.
        try:
            handler.ready(events)
        except Exception as error:
            self._report(error)
            try:
                handler.abort()
            except Exception as failure:
                self._report(failure)

    def _report(self, error: Exception) -> None:
        what = {"message": "a proxied connection failed", "exception": error}
        self._loop.call_exception_handler(what)
