"""What must become of a packet, by the pure policy alone. Knows nothing of the kernel's rules."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from network.netlab import GATEWAY, HTTPS_PORT, INGRESS, UPLINK
from network.observers import Fate
from network.packets import (
    ECHO,
    ESP,
    GRE,
    ICMP,
    SYN,
    TCP,
    TIMESTAMP,
    UDP,
    UNREACHABLE,
    Packet,
)
from sandgate.guard import AddressGuard
from sandgate.network import HOST_ADDRESS
from sandgate.policy import RESOLVER, EgressPolicy, Mode, ResolverAccess

_DNS = 53
_WEB = (80, 443)
BROADCASTS = frozenset(map(IPv4Address, ("203.0.113.255", "255.255.255.255")))
"""The uplink's and everybody's: no destination, also where the operator opens their range."""
OWN = frozenset({INGRESS, GATEWAY, HOST_ADDRESS, IPv4Address(UPLINK)}) | BROADCASTS


@dataclass(frozen=True, slots=True)
class Oracle:
    """Knows the fate of every packet of the sandbox at `address`."""

    address: IPv4Address
    policy: EgressPolicy
    guard: AddressGuard

    def fates(self, packet: Packet) -> frozenset[Fate]:
        """Those that are right; more than one where the kernel cannot or need not answer."""
        if packet.source != self.address or not packet.shape.complete:
            return frozenset({Fate.SILENCE})
        decided = Fate.PROHIBITED if packet.shape.has_options else self._decide(packet)
        if decided is Fate.PROHIBITED:
            return self._refused(packet)
        if packet.protocol == ICMP and packet.icmp_type not in (ECHO, TIMESTAMP):
            return frozenset({Fate.SILENCE})  # answers nothing that was asked
        listening = decided in (Fate.GATEWAY, Fate.RESOLVER, Fate.INGRESS)
        if listening and packet.protocol == TCP and packet.flags != SYN:
            return frozenset({Fate.RESET})  # of no connection that the listener knows
        return frozenset({decided})

    def _decide(self, packet: Packet) -> Fate:
        """Where a sound packet goes; PROHIBITED stands for every refusal."""
        port = packet.port if packet.protocol in (TCP, UDP) else None
        to, tcp = packet.destination, packet.protocol == TCP
        if to == RESOLVER and port == _DNS:
            asks = self.policy.resolver is not ResolverAccess.NONE
            return Fate.RESOLVER if asks else Fate.PROHIBITED
        if to == INGRESS:
            if not tcp or port != HTTPS_PORT:
                return Fate.PROHIBITED
            # Its names are those of port 443, whichever port that is here.
            if any(map(self._shows_names, (443, HTTPS_PORT))):
                return Fate.GATEWAY
            return Fate.INGRESS if self.policy.decide(to).allowed else Fate.PROHIBITED
        if self.guard.denies(to, OWN):
            return Fate.PROHIBITED
        if port == _DNS and self._is_resolver(to):
            return Fate.RESOLVER
        if tcp and self._shows_names(packet.port):
            return Fate.GATEWAY
        return Fate.ARRIVED if self.policy.decide(to).allowed else Fate.PROHIBITED

    def _shows_names(self, port: int) -> bool:
        """Does it depend on names what becomes of TCP to this port?"""
        if port in self.policy.ports:
            return True
        return port in _WEB and (bool(self.policy.names) or self._reports)

    def _is_resolver(self, server: IPv4Address) -> bool:
        """Is it one of those that the user wrote, and answered in its place?"""
        names = self.policy.names or self.policy.ports
        if not names or server not in (self.policy.dns_servers or ()):
            return False
        # One that is allowed as an address is reached itself.
        return self._reports or not self.policy.decide(server).allowed

    @property
    def _reports(self) -> bool:
        return self.policy.mode is Mode.REPORT

    def _refused(self, packet: Packet) -> frozenset[Fate]:
        if packet.protocol == ICMP and packet.icmp_type == UNREACHABLE:
            return frozenset({Fate.SILENCE})  # no ICMP error is ever answered by one
        if packet.protocol == TCP:
            if packet.destination.is_loopback:  # the kernel sends nothing from most of them
                return frozenset({Fate.RESET, Fate.SILENCE})
            return frozenset({Fate.RESET})
        if packet.protocol not in (UDP, ICMP, GRE, ESP):  # the kernel looks for a checksum in it
            return frozenset({Fate.PROHIBITED, Fate.SILENCE})
        return frozenset({Fate.PROHIBITED})
