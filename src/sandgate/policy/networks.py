"""Sets of IPv4 ranges. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, collapse_addresses


class NetworkSet:
    """A set of IPv4 ranges with a logarithmic look-up. Immutable."""

    __slots__ = ("_ends", "_starts", "networks")

    def __init__(self, networks: Iterable[IPv4Network] = ()) -> None:
        self.networks: tuple[IPv4Network, ...] = tuple(collapse_addresses(networks))
        """The ranges, collapsed: sorted, disjoint, none a part of another."""
        self._starts = [int(network.network_address) for network in self.networks]
        self._ends = [int(network.broadcast_address) for network in self.networks]

    def find(self, address: IPv4Address) -> IPv4Network | None:
        """The range that holds `address`, if any."""
        value = int(address)
        index = bisect_right(self._starts, value) - 1
        if index >= 0 and value <= self._ends[index]:
            return self.networks[index]
        return None

    def __contains__(self, address: IPv4Address) -> bool:
        return self.find(address) is not None

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSet) and self.networks == other.networks

    def __hash__(self) -> int:
        return hash(self.networks)

    def __repr__(self) -> str:
        return f"NetworkSet({[str(network) for network in self.networks]})"
