"""Connects to where a decision leads. The only place of the proxy that calls connect().

Whatever was checked before, the address is checked again here, on the very value that is dialled.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Address

from sandgate.egress.dns_message import is_under
from sandgate.egress.own_addresses import OwnAddresses
from sandgate.egress.reactor import Reactor
from sandgate.egress.relay import OPTIONS, Leg
from sandgate.egress.resolver import ResolutionError
from sandgate.egress.timeouts import Timeouts
from sandgate.egress.upstreams import Upstreams
from sandgate.guard import AddressGuard
from sandgate.reasons import Reason

STAGGER = 0.25
"""Seconds after which the next address of a name is tried beside the one before (RFC 8305)."""

ATTEMPT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
MAX_ADDRESSES = 32
"""Most addresses of one name that are tried."""

TLS_PORT = 443


class DialError(Exception):
    """No connection. `reason` is for the decision log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


Dialled = Callable[["Leg | DialError"], None]
"""Is told of the connection, or why there is none."""


class Dialer:
    """Opens connections for sandboxes.

    `ingress` is where the node serves sandbox URLs; names at or under `domain` lead there and
    nowhere else. It is the one always-denied destination that can be dialled.
    """

    __slots__ = (
        "_domain",
        "_guard",
        "_ingress",
        "_own",
        "_upstreams",
        "attempt",
        "loop",
        "reactor",
        "stagger",
        "total",
    )

    def __init__(
        self,
        reactor: Reactor,
        loop: asyncio.AbstractEventLoop,
        *,
        upstreams: Upstreams,
        guard: AddressGuard,
        own: OwnAddresses,
        ingress: tuple[IPv4Address, int],
        domain: str,
    ) -> None:
        self.reactor = reactor
        self.loop = loop
        self.stagger = Timeouts(loop, STAGGER)
        self.attempt = Timeouts(loop, ATTEMPT_SECONDS)
        self.total = Timeouts(loop, TOTAL_SECONDS)
        self._upstreams = upstreams
        self._guard = guard
        self._own = own
        self._ingress = ingress
        self._domain = domain

    def is_ingress(self, address: IPv4Address, port: int) -> bool:
        """Is this where the node serves sandbox URLs?"""
        return (address, port) == self._ingress

    def is_own(self, name: str) -> bool:
        """Is it one of the node's names?"""
        return is_under(name, self._domain)

    def by_name(
        self,
        name: str,
        port: int,
        servers: tuple[IPv4Address, ...] | None,
        dialled: Dialled,
        *,
        speaks: bool = False,
    ) -> Dialling:
        """Connect to a name that the policy allows, asking `servers` for it (None: the node's).

        `speaks`: something will be sent as soon as it is connected. `dialled` may be called
        before this returns.
        """
        if not self.is_own(name):
            dialling = Dialling(self, port, dialled, speaks)
            known = self._upstreams.known(name, servers, self.loop.time())
            if known is None:
                dialling.wait_for(self._find(dialling, name, servers))
            else:
                self._try(dialling, name, known)
            return dialling
        dialling = Dialling(self, self._ingress[1], dialled, speaks)
        if port == 80:
            why = "sandbox URLs are served over TLS only"
            dialling.fail(DialError(Reason.UNREACHABLE, why))
        else:
            dialling.start([self._ingress[0]])
        return dialling

    def by_address(
        self, address: IPv4Address, port: int, dialled: Dialled, *, speaks: bool = False
    ) -> Dialling:
        """Connect to an address that the policy allows; the rest is as for :meth:`by_name`."""
        dialling = Dialling(self, port, dialled, speaks)
        if self.denies(address, port):
            dialling.fail(DialError(Reason.ALWAYS_DENIED, f"{address} is out of reach"))
        else:
            dialling.start([address])
        return dialling

    async def _find(
        self, dialling: Dialling, name: str, servers: tuple[IPv4Address, ...] | None
    ) -> None:
        try:
            found = await self.addresses(name, servers)
        except DialError as error:
            dialling.fail(error)
        else:
            self._try(dialling, name, found)

    def _try(self, dialling: Dialling, name: str, found: Sequence[IPv4Address]) -> None:
        usable = [address for address in found if not self.denies(address, dialling.port)]
        if usable:
            dialling.start(usable[:MAX_ADDRESSES])
        else:
            dialling.fail(DialError(Reason.ALWAYS_DENIED, f"{name} leads to {found[0]}"))

    async def addresses(
        self, name: str, servers: tuple[IPv4Address, ...] | None
    ) -> Sequence[IPv4Address]:
        """Where a name leads. Raises :class:`DialError`."""
        if self.is_own(name):
            return [self._ingress[0]]
        try:
            return await self._upstreams.of(servers).addresses(name)
        except ResolutionError as error:
            raise DialError(Reason.NAME_UNRESOLVABLE, str(error)) from error

    def denies(self, address: IPv4Address, port: int) -> bool:
        """Is it out of reach, whatever a policy says?"""
        if self.is_ingress(address, port):
            return False
        try:
            return self._guard.denies(address, self._own.current())
        except OSError:
            return True  # without knowing our own addresses nothing is safe to dial


class Dialling:
    """A connection being made, to the first of some addresses that answers: each is tried a little
    after the one before, or as soon as that one has failed."""

    __slots__ = (
        "_attempts",
        "_dialer",
        "_dialled",
        "_remaining",
        "_speaks",
        "_task",
        "_why",
        "port",
    )

    def __init__(self, dialer: Dialer, port: int, dialled: Dialled, speaks: bool) -> None:
        self.port = port
        self._speaks = speaks
        self._dialer = dialer
        self._dialled: Dialled | None = dialled
        self._remaining: list[IPv4Address] = []
        self._attempts: dict[Leg, Callable[[], None]] = {}
        """Those under way, each with what ends it."""
        self._task: asyncio.Task[None] | None = None
        self._why = "nothing was tried"

    def wait_for(self, finding: Coroutine[None, None, None]) -> None:
        """Wait until the addresses are found; it then calls :meth:`start` or :meth:`fail`."""
        self._dialer.total.start(self._expire)
        self._task = self._dialer.loop.create_task(finding)

    def start(self, addresses: Sequence[IPv4Address]) -> None:
        """Try these, unless it was cancelled."""
        if self._dialled is not None:
            self._remaining = list(reversed(addresses))
            self._dialer.total.start(self._expire)
            self._next()

    def fail(self, error: DialError) -> None:
        """Say that there is no connection, unless it was cancelled."""
        self._end(error)

    def cancel(self) -> None:
        """Give up. Nothing more is said. Does nothing if it is over."""
        self._dialled = None
        if self._task is not None:
            self._task.cancel()
        self._stop()

    def _next(self) -> None:
        while self._remaining:
            try:
                self._attempt(self._remaining.pop())
            except OSError as error:
                self._why = str(error)
                continue
            if self._remaining:
                self._dialer.stagger.start(self._next)
            return
        if not self._attempts:
            self._end(DialError(Reason.UNREACHABLE, self._why))

    def _attempt(self, address: IPv4Address) -> None:
        dialer = self._dialer
        if dialer.denies(address, self.port):
            raise PermissionError(f"{address} is out of reach")
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        leg = Leg(dialer.reactor, sock)
        try:
            for option in OPTIONS:
                sock.setsockopt(*option)
            if self._speaks:
                # The first bytes acknowledge the connection, without a packet before them (tcp(7)).
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            leg.connect(address, self.port, self._connected)
        except OSError:
            leg.reset()
            raise

        def expire() -> None:
            self._failed(leg, "no answer in time")

        self._attempts[leg] = expire
        dialer.attempt.start(expire)

    def _connected(self, leg: Leg, error: OSError | None) -> None:
        if error is not None:
            self._failed(leg, str(error))
            return
        self._dialer.attempt.stop(self._attempts.pop(leg))
        self._end(leg)

    def _failed(self, leg: Leg, why: str) -> None:
        self._why = why
        self._dialer.attempt.stop(self._attempts.pop(leg))
        leg.reset()
        self._dialer.stagger.stop(self._next)
        self._next()

    def _expire(self) -> None:
        self._end(DialError(Reason.UNREACHABLE, "no answer in time"))

    def _end(self, outcome: Leg | DialError) -> None:
        self._stop()
        dialled, self._dialled = self._dialled, None
        if dialled is not None:
            dialled(outcome)

    def _stop(self) -> None:
        """Give up what is under way."""
        self._remaining.clear()
        self._dialer.total.stop(self._expire)
        self._dialer.stagger.stop(self._next)
        for leg, expire in self._attempts.items():
            self._dialer.attempt.stop(expire)
            leg.reset()
        self._attempts.clear()
