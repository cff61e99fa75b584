"""What the network of a node is made with."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from sandgate.limits import TrafficLimits
from sandgate.network.shares import Share, share_out
from sandgate.policy import NetworkSet

HOST_ADDRESS = IPv4Address("169.254.1.1")
"""The host as every sandbox sees it: its default gateway, and the source of ingress connections."""

INTERFACE_PREFIX = "sg"
"""Host ends of the veth pairs are named `sg<slot>`; no other interface may begin so."""

FIRST_INDEX = 0x53470000
"""Interface index of `sg0`; far above those the kernel hands out."""

LINK_GROUP = 0x5347
"""Interface group of the host ends, to delete them by."""

FIRST_SANDBOX = 16
"""Offset of the first sandbox's address in the range; those below belong to the node."""


@dataclass(frozen=True, slots=True)
class LinkConfig:
    """What the links of a node's sandboxes have in common."""

    sandboxes: IPv4Network
    """Where sandboxes have their addresses."""
    download_mbit: int | None = None
    """Megabits a second towards a sandbox. None: no limit."""
    upload_mbit: int | None = None
    """Megabits a second from a sandbox. None: no limit."""

    def address(self, slot: int) -> IPv4Address:
        """The address of the sandbox in `slot` (from 0). Raises ValueError outside the range."""
        if not 0 <= slot < self.slots:
            raise ValueError(f"slot {slot} is not in 0..{self.slots - 1} ({self.sandboxes})")
        return self.sandboxes.network_address + FIRST_SANDBOX + slot

    @property
    def slots(self) -> int:
        """How many sandboxes have an address; the range's last address stays unused."""
        return self.sandboxes.num_addresses - FIRST_SANDBOX - 1


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """Addresses, ports and users of one node's network."""

    sandboxes: IPv4Network
    """Where sandboxes, `ingress_address` and `gateway_address` have their addresses."""
    ingress_address: IPv4Address
    """Where HAProxy serves sandbox URLs to sandboxes."""
    https_port: int
    """Its TCP port there."""
    gateway_address: IPv4Address
    """Where the egress gateway listens: DNS on port 53, TCP on `gateway_port`."""
    gateway_port: int
    closed: NetworkSet
    """What no policy opens (:attr:`sandgate.guard.AddressGuard.closed`)."""
    gateway_uid: int | None
    """Uid of the gateway's process, held to `closed` in the kernel too. None: not held."""
    upstream_dns: tuple[IPv4Address, ...] = ()
    """Resolvers that `gateway_uid` may ask even where they are in `closed`."""
    limits: TrafficLimits = field(default_factory=TrafficLimits)
    max_sandboxes: int = 1000
    """How many there may be at once."""
    tracked: int = 262_144
    """Entries of the kernel's table of connections."""

    def address(self, slot: int) -> IPv4Address:
        """The address of the sandbox in `slot` (from 0). Raises ValueError outside the range."""
        return self.links.address(slot)

    @property
    def slots(self) -> int:
        """How many sandboxes have an address."""
        return self.links.slots

    @property
    def shares(self) -> tuple[Share, ...]:
        """What a sandbox may have open."""
        return share_out(self.tracked, self.max_sandboxes, self.limits.connections)

    @property
    def links(self) -> LinkConfig:
        """What concerns the links."""
        return LinkConfig(self.sandboxes, self.limits.download_mbit, self.limits.upload_mbit)
