"""The addresses that no policy opens. Pure.

Only the operator can open ranges of these, by `internal_allow` in the configuration; the sandboxes'
own range stays closed even then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from sandgate.policy import NetworkSet

ALWAYS_DENIED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
"""Private, shared, loopback, link-local, benchmarking, multicast and reserved ranges (RFC 6890)."""


@dataclass(frozen=True, slots=True)
class AddressGuard:
    """Says whether an address is out of reach for every sandbox.

    `sandboxes` is the range that sandboxes get their addresses from. The machine's own addresses
    change at run time and are passed to :meth:`denies` by the caller.
    """

    sandboxes: IPv4Network
    internal_allow: tuple[IPv4Network, ...] = ()
    closed: NetworkSet = field(init=False)
    """What is always denied once the operator's openings are taken out."""

    def __post_init__(self) -> None:
        ranges: list[IPv4Network] = list(ALWAYS_DENIED)
        for opening in self.internal_allow:
            ranges = [part for network in ranges for part in _subtract(network, opening)]
        object.__setattr__(self, "closed", NetworkSet([*ranges, self.sandboxes]))

    def denies(self, address: IPv4Address, own: Iterable[IPv4Address] = ()) -> bool:
        """Is `address` out of reach? `own` are the machine's addresses at this moment."""
        return address in self.closed or address in own


def _subtract(network: IPv4Network, opening: IPv4Network) -> list[IPv4Network]:
    if not network.overlaps(opening):
        return [network]
    if opening.supernet_of(network):
        return []
    return list(network.address_exclude(opening))
