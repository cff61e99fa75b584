"""Connects to where a decision leads. The only place of the proxy that calls connect().

Whatever was checked before, the address is checked again here, on the very value that is dialled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address

from sandgate.egress.dns_message import is_under
from sandgate.egress.own_addresses import OwnAddresses
from sandgate.egress.relay import Leg
from sandgate.egress.resolver import ResolutionError
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

LegFactory = Callable[[], Leg]


class DialError(Exception):
    """No connection. `reason` is for the decision log."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Dialer:
    """Opens connections for sandboxes.

    `ingress` is where the node serves sandbox URLs; names at or under `domain` lead there and
    nowhere else. It is the one always-denied destination that can be dialled.
    """

    __slots__ = ("_domain", "_guard", "_ingress", "_own", "_upstreams")

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        guard: AddressGuard,
        own: OwnAddresses,
        ingress: tuple[IPv4Address, int],
        domain: str,
    ) -> None:
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

    async def by_name(
        self,
        name: str,
        port: int,
        factory: LegFactory,
        servers: tuple[IPv4Address, ...] | None = None,
    ) -> Leg:
        """Connect to a name that the policy allows, asking `servers` for it (None: the node's).

        Raises :class:`DialError`.
        """
        if self.is_own(name):
            if port == 80:
                raise DialError(Reason.UNREACHABLE, "sandbox URLs are served over TLS only")
            return await self._first([self._ingress[0]], self._ingress[1], factory)
        found = await self.addresses(name, servers)
        usable = [address for address in found if not self.denies(address, port)]
        if not usable:
            raise DialError(Reason.ALWAYS_DENIED, f"{name} leads to {found[0]}")
        return await self._first(usable[:MAX_ADDRESSES], port, factory)

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

    async def by_address(self, address: IPv4Address, port: int, factory: LegFactory) -> Leg:
        """Connect to an address that the policy allows. Raises :class:`DialError`."""
        if self.denies(address, port):
            raise DialError(Reason.ALWAYS_DENIED, f"{address} is out of reach")
        return await self._first([address], port, factory)

    def denies(self, address: IPv4Address, port: int) -> bool:
        """Is it out of reach, whatever a policy says?"""
        if self.is_ingress(address, port):
            return False
        try:
            return self._guard.denies(address, self._own.current())
        except OSError:
            return True  # without knowing our own addresses nothing is safe to dial

    async def _first(self, addresses: Sequence[IPv4Address], port: int, factory: LegFactory) -> Leg:
        """The first of `addresses` that answers, each started a little after the one before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TOTAL_SECONDS
        remaining = list(reversed(addresses))
        attempts: set[asyncio.Task[Leg]] = set()
        why = "nothing was tried"
        try:
            while remaining or attempts:
                if remaining:
                    attempt = self._connect(remaining.pop(), port, factory)
                    attempts.add(loop.create_task(attempt))
                patience = STAGGER if remaining else max(deadline - loop.time(), 0)
                done, attempts = await asyncio.wait(
                    attempts, timeout=patience, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        done.discard(task)
                        attempts |= done
                        return task.result()
                    why = str(error) or "no answer in time"
                if not done and (not remaining or loop.time() >= deadline):
                    break
        finally:
            _abandon(attempts)
        raise DialError(Reason.UNREACHABLE, why)

    async def _connect(self, address: IPv4Address, port: int, factory: LegFactory) -> Leg:
        if self.denies(address, port):
            raise PermissionError(f"{address} is out of reach")
        async with asyncio.timeout(ATTEMPT_SECONDS):
            _, leg = await asyncio.get_running_loop().create_connection(factory, str(address), port)
        leg.address = address
        return leg


def _abandon(attempts: set[asyncio.Task[Leg]]) -> None:
    """Give up what did not win; one that has just connected is closed again."""

    def discard(task: asyncio.Task[Leg]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().reset()

    for task in attempts:
        task.cancel()
        task.add_done_callback(discard)
