"""The launcher's socket: who may connect, requests that come in, answers that go out."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandgate.inbox import Inbox
from sandgate.runtime.protocol import MAX_MESSAGE, checked_id

_BACKLOG = 16
_MAX_PEERS = 64
"""Connections at once. Control has one; whoever takes more is not to use up the descriptors."""
_MAX_REASON = 1024
_MALFORMED = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a request can raise; the sender is less privileged, so none may end the launcher."""
_NO_ROOM = (errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

_log = logging.getLogger(__name__)


class RequestError(Exception):
    """A request that cannot be carried out; becomes the reply."""

    def __init__(self, reason: str, kind: str = "failed") -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One request. Answered once, now or later, by `reply` or `refuse`."""

    connection: socket.socket
    number: int
    """By which the sender knows the answer."""
    message: dict[str, Any]
    descriptors: tuple[int, ...]
    """Closed when the handler returns."""

    @property
    def sandbox_id(self) -> str:
        """The sandbox that it is about. Raises ValueError, KeyError where there is none."""
        return checked_id(self.message["sandbox_id"])

    @property
    def snapshot_id(self) -> str:
        """The snapshot that it is about. Raises ValueError, KeyError where there is none."""
        return checked_id(self.message["snapshot_id"])

    def announce(self, fields: dict[str, Any]) -> None:
        """Something that its sender may know before it is carried out."""
        _send(self.connection, {"id": self.number, "announced": fields})

    def reply(self, result: dict[str, Any]) -> None:
        """It was carried out."""
        _send(self.connection, {"id": self.number, "result": result})

    def refuse(self, reason: str, kind: str = "failed") -> None:
        """It was not, and nothing of it is left. `kind` is "failed" or "capacity"."""
        error = {"reason": reason[:_MAX_REASON], "kind": kind}
        _send(self.connection, {"id": self.number, "error": error})

    def reporter(self, what: str) -> Callable[[str | None], None]:
        """Answers once the work for it is done; `what` begins the reason of a failure."""

        def done(failure: str | None) -> None:
            if failure is None:
                self.reply({})
            else:
                self.refuse(f"{what}: {failure}")

        return done


class Peers:
    """The connections. `handle` may raise RequestError, or whatever malformed input makes it."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        listener: socket.socket,
        allowed_uids: frozenset[int],
        handle: Callable[[Request], None],
    ) -> None:
        self._selector = selector
        self._listener = listener
        self._allowed_uids = allowed_uids
        self._handle = handle
        self._connections: set[socket.socket] = set()
        self._inbox = Inbox(MAX_MESSAGE)

    def start(self) -> None:
        """Accept connections."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def tell_all(self, event: dict[str, Any]) -> None:
        """Send an event to whoever is connected."""
        for connection in list(self._connections):
            _send(connection, event)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            _log.error("a connection could not be accepted: %s", error)
            return
        if (why := self._why_refused(connection)) is not None:
            _log.warning("refused a connection: %s", why)
            connection.close()
            return
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE)
        self._connections.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._receive(connection))

    def _why_refused(self, connection: socket.socket) -> str | None:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        _, uid, _ = struct.unpack("3i", credentials)
        if uid not in self._allowed_uids:
            return f"it is of uid {uid}"
        if len(self._connections) >= _MAX_PEERS:
            return f"there are {_MAX_PEERS} already"
        return None

    def _receive(self, connection: socket.socket) -> None:
        try:
            data, descriptors = self._inbox.receive_descriptors(connection, 2)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", ()
        try:
            if data:
                self._carry_out(connection, data, descriptors)
            else:
                self._selector.unregister(connection)
                self._connections.discard(connection)
                connection.close()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _carry_out(
        self, connection: socket.socket, data: bytes, descriptors: tuple[int, ...]
    ) -> None:
        request = Request(connection, 0, {}, descriptors)
        try:
            message = json.loads(data)
            request = Request(connection, int(message["id"]), message, descriptors)
            self._handle(request)
        except RequestError as error:
            request.refuse(str(error), error.kind)
        except _MALFORMED as error:
            request.refuse(f"malformed request: {error!r}")
        except OSError as error:
            kind = kind_of_failure(error.errno)
            _log.error("request failed: %s", error, exc_info=True)
            request.refuse(f"{error.filename or ''} {error.strerror or error}", kind)


def kind_of_failure(number: int | None) -> str:
    """What a refusal for this error of the system is."""
    return "capacity" if number in _NO_ROOM else "failed"


def listen(path: Path, *, group: int) -> socket.socket:
    """The launcher's socket, for root and `group`. Replaces a stale one.

    It stays root's, so that in a sticky directory nobody else can put something in its place.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    os.chown(path, 0, group)
    path.chmod(0o660)
    listener.listen(_BACKLOG)
    return listener


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    try:
        connection.send(json.dumps(message).encode())
    except OSError as error:
        # Control asks for what runs when it connects again, so nothing is lost.
        _log.warning("control does not take a message: %s", error)
