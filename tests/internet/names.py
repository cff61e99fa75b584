"""What the small internet's DNS knows, and the addresses that tests refer to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ATTACKER = "203.0.113.66"
"""Where code in a sandbox would like to send things. No allowed name leads here."""

UPSTREAM_DNS = "198.51.100.253"
"""The resolver that nodes under test are told to ask; sandboxes have no reason to know it."""

UNREACHABLE = "203.0.113.200"
"""Answered with ICMP host unreachable."""

SILENT = "203.0.113.201"
"""Swallows every packet."""

PRIVATE = ("10.66.0.3", "169.254.169.254", "192.168.7.7", "100.64.9.9", "172.16.4.4")
"""Private addresses that the far side would answer for, if a packet to one ever got out."""


@dataclass(frozen=True, slots=True)
class Record:
    """The answer for one name. An `addresses` query with nothing to give is answered empty."""

    addresses: tuple[str, ...] = ()
    then: tuple[str, ...] = ()
    """Answered from the second query on, when set: what a rebinding attacker's server does."""
    ipv6: tuple[str, ...] = ()
    cname: str | None = None
    text: str | None = None
    ttl: int = 60

    def to_json(self) -> dict[str, Any]:
        """For the control socket."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record:
        """The inverse of :meth:`to_json`."""
        return cls(
            addresses=tuple(data["addresses"]),
            then=tuple(data["then"]),
            ipv6=tuple(data["ipv6"]),
            cname=data["cname"],
            text=data["text"],
            ttl=data["ttl"],
        )


def _a(*addresses: str) -> Record:
    return Record(addresses=addresses)


ZONE: dict[str, Record] = {
    "google.com": _a("142.250.74.14"),
    "www.google.com": _a("142.250.74.36"),
    "connectivitycheck.gstatic.com": _a("142.250.74.99"),
    "dns.google": _a("8.8.8.8", "8.8.4.4"),
    "one.one.one.one": _a("1.1.1.1", "1.0.0.1"),
    "cloudflare.com": _a("104.16.132.229"),
    "www.cloudflare.com": _a("104.16.123.96"),
    "github.com": _a("140.82.121.3"),
    "*.github.com": _a("140.82.121.6"),
    "mydomain.com": _a("185.199.108.10"),
    "*.mydomain.com": _a("185.199.108.11"),
    "notmydomain.com": _a("185.199.108.12"),
    "example.com": Record(addresses=("93.184.216.34",), ipv6=("2606:2800:220:1::34",)),
    "www.example.com": _a("93.184.216.35"),
    "api.example.com": _a("93.184.216.40"),
    "packages.example.com": _a("93.184.216.50"),
    "attacker.example.net": _a(ATTACKER),
    "*.tunnel.example.net": _a(ATTACKER),
    # Several addresses, the first of them dead.
    "several.example.com": _a(UNREACHABLE, "93.184.216.41"),
    "dead.example.com": _a(UNREACHABLE),
    # Chains, one of which leaves the domain it starts in.
    "alias.example.com": Record(cname="hop.example.com"),
    "hop.example.com": Record(cname="api.example.com"),
    "cdn.example.com": Record(cname="edge.cloudflare.com"),
    "edge.cloudflare.com": _a("104.16.200.7"),
    "loop.example.com": Record(cname="loop.example.com"),
    # Public names that lead inside.
    "private.example.com": _a("10.66.0.3"),
    "metadata.example.com": _a("169.254.169.254"),
    "loopback.example.com": _a("127.0.0.1"),
    "zero.example.com": _a("0.0.0.0"),
    "shared.example.com": _a("100.64.9.9"),
    "mixed.example.com": _a("192.168.7.7", "93.184.216.42"),
    "inside-alias.example.com": Record(cname="private.example.com"),
    "rebinding.example.com": Record(addresses=("93.184.216.43",), then=("10.66.0.3",), ttl=0),
    "v6.example.com": Record(ipv6=("2606:2800:220:1::6",)),
    "text.example.com": Record(text="hello"),
    "large.example.com": Record(text="x" * 3000),
}
"""`*.` names match any depth below that no exact name matches."""


def find(zone: dict[str, Record], name: str) -> Record | None:
    """The record for a lower-case name without trailing dot."""
    record = zone.get(name)
    parent = name
    while record is None and "." in parent:
        parent = parent.split(".", 1)[1]
        record = zone.get(f"*.{parent}")
    return record
