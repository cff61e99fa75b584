"""What an attack is, and which contacts a policy permits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

from internet import ATTACKER, UPSTREAM_DNS, Contact, Record

SITE = "api.example.com"
"""The one name that is allowed, beside the traps."""
SITE_ADDRESS = "93.184.216.40"
TRAPS = "trap.example.com"
"""Every name below this one is allowed, and its owner is hostile."""
TRAP_ADDRESS = "93.184.216.60"
"""The one public address that a trap may lead to."""
ALL = "0.0.0.0/0"
STOLEN = "c2vjcmv0"
"""A label that carries data: nobody outside may hear it, whoever owns the name."""

TRAP_RECORDS = {
    "public": Record(addresses=(TRAP_ADDRESS,)),
    "private": Record(addresses=("10.66.0.3",)),
    "shared": Record(addresses=("100.64.9.9",)),
    "metadata": Record(addresses=("169.254.169.254",)),
    "loopback": Record(addresses=("127.0.0.1",)),
    "zero": Record(addresses=("0.0.0.0",)),
    "benchmark": Record(addresses=("198.18.7.7",)),
    "protocol": Record(addresses=("192.0.0.9",)),
    "nat64": Record(ipv6=("64:ff9b::a42:3",)),
    "6to4": Record(ipv6=("2002:a42:3::1",)),
    "mapped": Record(ipv6=("::ffff:10.66.0.3",)),
    "alias": Record(cname=f"private.{TRAPS}"),
    "outside": Record(cname="private.example.com"),
    "mixed": Record(addresses=("10.66.0.3", TRAP_ADDRESS)),
}
"""What the owner of the traps answers, beside what :meth:`Place.trap_records` adds."""

_CLOSED = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
            *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15"),
            *("224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
_HOST = re.compile(r"^[ \t]*host[ \t]*:[ \t]*([^\r\n]*)", re.IGNORECASE | re.MULTILINE)


class Verdict(StrEnum):
    """What became of an attack."""

    REFUSED = "refused"
    PASSES = "passes"


@dataclass(frozen=True, slots=True)
class Policy:
    """An egress policy in the SDK's words, and what it permits."""

    title: str
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    control: tuple[str, ...] | None = None
    """Program of `programs/control.py` with arguments, that must still work after an attack."""
    names: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """Where permitted contacts may go. Empty: anywhere that is not always denied."""

    def network(self) -> dict[str, list[str]]:
        """For the SDK."""
        network = {"allow_out": list(self.allow), "deny_out": list(self.deny)}
        return {key: value for key, value in network.items() if value}

    def permits_name(self, name: str) -> bool:
        """Is a name among those allowed?"""
        return any(
            name == entry or (entry.startswith("*.") and name.endswith(entry[1:]))
            for entry in self.names
        )

    def permits(self, contact: Contact, place: Place) -> bool:
        """May this contact have been made under this policy?"""
        asks = bool(self.names) or not self.addresses
        if contact.kind == "query" and STOLEN in contact.name:
            return False
        if contact.kind == "query":
            plain = not contact.detail["odd"] and contact.detail["type"] in ("A", "AAAA")
            return asks and (not self.names or (plain and self.permits_name(contact.name)))
        if contact.protocol not in ("tcp", "udp", "icmp") or contact.detail.get("options"):
            return False
        if contact.kind == "packet" and contact.source != place.address:
            return False
        if contact.destination in place.resolvers and contact.port == 53:
            return asks
        if not self.addresses:
            return not any(IPv4Address(contact.destination) in network for network in _CLOSED)
        if contact.destination not in self.addresses:
            return False
        if not self.names:
            return True
        if contact.port not in (80, 443):
            return False
        if contact.kind == "connection":
            return contact.port == 80 or self.permits_name(contact.name)
        if contact.kind == "request":
            raw = str(contact.detail["raw"])
            hosts = {host.strip().lower() for host in _HOST.findall(raw)}
            plain = len(hosts) == 1 and "h2c" not in raw.lower()
            return plain and all(self.permits_name(host) for host in hosts)
        return True


@dataclass(frozen=True, slots=True)
class Place:
    """Where attacks are run: what its contacts look like on the far side, and what is around it."""

    title: str
    address: str
    """Source of its contacts."""
    link: str
    """Interface of the small internet that its packets arrive on."""
    resolvers: frozenset[str]
    """Servers that its gate may ask, or lets the sandbox ask."""
    gated: bool = True
    words: Mapping[str, str] = field(default_factory=dict)
    """What `{words}` in the arguments of programs stand for here."""

    def trap_records(self) -> dict[str, Record]:
        """Traps of this place: its own public address, and an answer that changes once asked."""
        changing = Record(addresses=(TRAP_ADDRESS,), then=("10.66.0.3",), ttl=0)
        return {
            f"own-{self.title}": Record(addresses=(self.address,)),
            f"changing-{self.title}": changing,
        }

    def made(self, contact: Contact) -> bool:
        """Did this contact come from here?"""
        return contact.source == self.address or contact.detail.get("link") == self.link


NAMES = Policy(
    title="two names",
    allow=(SITE, f"*.{TRAPS}"),
    deny=(ALL,),
    control=("http", SITE_ADDRESS, SITE),
    names=(SITE, f"*.{TRAPS}"),
    addresses=(SITE_ADDRESS, TRAP_ADDRESS),
)
ADDRESS = Policy(
    title="one address",
    allow=(SITE_ADDRESS,),
    deny=(ALL,),
    control=("udp", SITE_ADDRESS),
    addresses=(SITE_ADDRESS,),
)
OPEN = Policy(title="no restriction", control=("udp", ATTACKER))
OFF = Policy(title="no internet", deny=(ALL,), addresses=("255.255.255.255",))
URL = Policy(
    title="one sandbox URL",
    allow=("{url}",),
    deny=(ALL,),
    names=("url",),
    addresses=("255.255.255.255",),
)
"""Allows the URL of one port of another sandbox; `{url}` is filled in at the start."""
MOVING = Policy(title="whatever the test sets")
POLICIES = (NAMES, ADDRESS, OPEN, OFF, URL)


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack: a row of the table."""

    title: str
    program: str
    """`module.function` of `programs/`."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    policy: Policy = NAMES
    ours: Verdict = Verdict.REFUSED
    theirs: Verdict | None = Verdict.REFUSED
    """Of the model of E2B. None: the model cannot express it."""
    shown: bool = True
    """Does it get through where there is no gate? Not if it needs what the gate itself has."""
    long: bool = False
    """Does it take minutes?"""
    note: str = ""
    """For the table."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """An attack that is more than a program: a row of the table as well."""

    title: str
    ours: Verdict
    theirs: Verdict | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Attacks of one class."""

    title: str
    attacks: tuple[Attack, ...]
    scenarios: tuple[Scenario, ...] = ()

    @property
    def rows(self) -> tuple[Attack | Scenario, ...]:
        """All of them, for the table."""
        return (*self.attacks, *self.scenarios)


RESOLVERS_OURS = frozenset({UPSTREAM_DNS})
RESOLVERS_THEIRS = frozenset({UPSTREAM_DNS, "8.8.8.8"})
