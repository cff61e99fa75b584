"""Accepts what the kernel hands over from sandboxes and starts a session for it."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

from sandgate.egress.decision_log import Entry
from sandgate.egress.dial import TLS_PORT
from sandgate.egress.http_session import HttpSession
from sandgate.egress.port_session import PortSession, pinned_name
from sandgate.egress.relay import OPTIONS, Leg
from sandgate.egress.session import Session, SessionContext
from sandgate.egress.table import Sandbox
from sandgate.egress.tls_session import TlsSession
from sandgate.reasons import Reason

_RESERVED_FILES = 2048
"""File descriptors kept for DNS, control, logs and connections being dialled in parallel."""

_MIN_SHARE = 16
"""Connections a sandbox may have however crowded the node is."""

_TRACKED = Path("/proc/sys/net/netfilter/nf_conntrack_max")

_PAUSE = 0.5
"""Seconds without accepting when there is no room for another descriptor."""

_logger = logging.getLogger(__name__)


def connection_limit() -> int:
    """How many connections fit, two file descriptors each; raises the soft limit first.

    Those that it makes itself are to leave seven eighths of the kernel's table of connections.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    fit = (hard - _RESERVED_FILES) // 2
    with suppress(OSError):  # nothing has been tracked yet
        fit = min(fit, int(_TRACKED.read_text()) // 8 or fit)
    return max(fit, 64)


class Proxy:
    """Starts sessions for what `listener`, a transparent socket, is handed.

    `limit` bounds the connections of all sandboxes together, `limit_each` those of one.
    """

    __slots__ = ("_context", "_limit", "_limit_each", "_listener", "_pausing")

    def __init__(
        self, context: SessionContext, listener: socket.socket, limit: int, limit_each: int
    ) -> None:
        self._context = context
        self._listener = listener
        self._pausing: asyncio.TimerHandle | None = None
        self._limit = limit
        self._limit_each = limit_each

    def start(self) -> None:
        """Accept connections from now on."""
        for option in OPTIONS:
            self._listener.setsockopt(*option)
        self._context.loop.add_reader(self._listener, self._accept)

    def stop(self) -> None:
        """Accept no more."""
        if self._pausing is not None:
            self._pausing.cancel()
        self._context.loop.remove_reader(self._listener)
        self._listener.close()

    def _accept(self) -> None:
        """Accept one: whether more wait is cheaper to be told than to try."""
        try:
            sock, source = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # Out of descriptors or memory: those who wait can wait until there is some again.
            _logger.warning("no connection is accepted for %s s: %s", _PAUSE, error)
            self._context.loop.remove_reader(self._listener)
            self._pausing = self._context.loop.call_later(_PAUSE, self.start)
            return
        sock.setblocking(False)
        self._serve(Leg(self._context.dialer.reactor, sock), source[0], sock.getsockname())

    def _serve(self, leg: Leg, source: str, local: tuple[str, int]) -> None:
        """Judge by its source whether a connection is served at all."""
        sandbox = self._context.table.get(source)
        if sandbox is None:
            self._refuse(leg, None, local, Reason.UNKNOWN_SANDBOX)
            return
        if (full := self._full_for(sandbox)) is not None:
            self._refuse(leg, sandbox, local, full)
            return
        # On a transparent socket, the local address is where the sandbox meant to go.
        destination, port = IPv4Address(local[0]), local[1]
        kind = self._kind(sandbox, destination, port)
        kind(self._context, sandbox, leg, destination, port)
        if not leg.closing:
            leg.start()

    def _kind(self, sandbox: Sandbox, address: IPv4Address, port: int) -> type[Session]:
        """What reads the connection: by names that are shown on the web's ports, else by pins."""
        if port == 80:
            return HttpSession
        if self._context.dialer.is_ingress(address, port):
            return TlsSession
        if port == TLS_PORT and not pinned_name(sandbox, address, port, self._context.loop.time()):
            return TlsSession
        return PortSession

    def _full_for(self, sandbox: Sandbox) -> Reason | None:
        """Why the sandbox can have no more connections, or None."""
        total, own = self._context.table.connections, len(sandbox.connections)
        if own >= self._limit_each:
            return Reason.LIMIT_CONNECTIONS
        if total < self._limit * 3 // 4:
            return None
        # The last quarter is shared out, so that no sandbox can keep the others from connecting.
        share = max(self._limit // (4 * len(self._context.table)), _MIN_SHARE)
        return Reason.LIMIT_NODE_CONNECTIONS if total >= self._limit or own >= share else None

    def _refuse(
        self, leg: Leg, sandbox: Sandbox | None, local: tuple[str, int], outcome: Reason
    ) -> None:
        self._context.log.write(
            Entry(
                sandbox_id=sandbox.sandbox_id if sandbox else None,
                protocol="tcp",
                destination=local[0],
                port=local[1],
                allowed=False,
                reason=outcome,
            ),
            sandbox.lines if sandbox else None,
        )
        leg.reset()
