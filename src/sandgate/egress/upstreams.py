"""Who is asked for a sandbox's names: the node's resolvers, or those that its policy lists."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv4Address

from sandgate.egress.own_addresses import OwnAddresses
from sandgate.egress.resolver import ResolutionError, Resolver
from sandgate.guard import AddressGuard

DNS_PORT = 53

MAX_LISTS = 64
"""Most lists of servers whose answers are kept; those not used for longest give way."""

_CACHE_ENTRIES = 256


class Upstreams:
    """A resolver for each list of servers. What one list's servers say, no other list is told."""

    __slots__ = ("_guard", "_lists", "_node", "_own")

    def __init__(self, node: Sequence[IPv4Address], guard: AddressGuard, own: OwnAddresses) -> None:
        """`node` are the servers of the node, which alone may be at internal addresses."""
        self._node = Resolver([(str(server), DNS_PORT) for server in node])
        self._guard = guard
        self._own = own
        self._lists: OrderedDict[tuple[IPv4Address, ...], Resolver] = OrderedDict()

    def of(self, servers: tuple[IPv4Address, ...] | None) -> Resolver:
        """The resolver that asks `servers`, or the node's if None.

        Raises :class:`ResolutionError` if all of them are out of reach for sandboxes.
        """
        if servers is None:
            return self._node
        found = self._lists.get(servers)
        if found is None:
            own = self._own.current()
            usable = [server for server in servers if not self._guard.denies(server, own)]
            if not usable:
                raise ResolutionError("dnsServers: every server is at an always-denied address")
            found = Resolver([(str(item), DNS_PORT) for item in usable], _CACHE_ENTRIES)
            self._lists[servers] = found
            if len(self._lists) > MAX_LISTS:
                self._lists.popitem(last=False)
        self._lists.move_to_end(servers)
        return found

    def known(
        self, name: str, servers: tuple[IPv4Address, ...] | None, now: float
    ) -> list[IPv4Address] | None:
        """Where `name` leads, if `servers` have said so and that is still good at `now` (the
        loop's); None if they have to be asked."""
        resolver = self._node if servers is None else self._lists.get(servers)
        return None if resolver is None else resolver.known(name, now)

    async def close(self) -> None:
        """Stop all questions."""
        for resolver in (self._node, *self._lists.values()):
            await resolver.close()
