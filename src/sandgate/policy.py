"""The egress policy of a sandbox: what it may reach, as a value. Pure: no I/O.

A policy is parsed once from what the user wrote (:func:`parse_policy`), travels as JSON to the
processes that enforce it, and is asked there by :meth:`EgressPolicy.decide`. The kernel rules
(`sandgate.network.ruleset`) are generated from the same value, so both can be compared.

Order of evaluation, as in E2B: an allowed name, an allowed address, a denied address, default
allow. Allow beats deny whatever the order and however specific. Ranges that no policy can open
are not part of a policy; see :class:`sandgate.guard.AddressGuard`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from sandgate.reasons import Reason

ALL_TRAFFIC = "0.0.0.0/0"
"""The range that means every address."""

RESOLVER = IPv4Address("8.8.8.8")
"""The resolver every sandbox is configured with; the gateway answers it."""

MAX_ENTRIES = 10_000
"""Most entries in one list; bounds the memory a policy can take."""

_NEEDS_DENY_ALL = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out "
    "to block all other traffic."
)
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+(/\d+)?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class PolicyError(ValueError):
    """A policy that cannot be accepted: `field` is the list's wire name, `entry` what is wrong."""

    def __init__(self, message: str, *, field: str, entry: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.entry = entry


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question. `rule` is the entry that decided, or None for the default."""

    allowed: bool
    reason: Reason
    rule: str | None = None


class ResolverAccess(StrEnum):
    """What the sandbox's resolver answers."""

    ALL = "all"
    NAMES = "names"
    """Names that the policy allows; the rest is REFUSED."""
    NONE = "none"


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


@dataclass(frozen=True, slots=True)
class NameSet:
    """Allowed names: exact ones, and `*.` suffixes that match any depth below but not the apex."""

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    """Without the `*.`"""
    every: bool = False

    @classmethod
    def of(cls, patterns: Iterable[str]) -> NameSet:
        """From normalised patterns (see :func:`normalise_pattern`)."""
        patterns = list(patterns)
        return cls(
            exact=frozenset(p for p in patterns if not p.startswith("*")),
            suffixes=frozenset(p[2:] for p in patterns if p.startswith("*.")),
            every="*" in patterns,
        )

    def match(self, name: str) -> str | None:
        """The pattern that admits `name` (normalised by :func:`normalise_name`), if any."""
        if name in self.exact:
            return name
        start = name.find(".")
        while start != -1:
            suffix = name[start + 1 :]
            if suffix in self.suffixes:
                return f"*.{suffix}"
            start = name.find(".", start + 1)
        return "*" if self.every else None

    def __bool__(self) -> bool:
        return self.every or bool(self.exact or self.suffixes)

    def patterns(self) -> list[str]:
        """All patterns, sorted."""
        every = ["*"] if self.every else []
        return every + sorted(self.exact) + [f"*.{suffix}" for suffix in sorted(self.suffixes)]


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What one sandbox may reach. The default allows everything."""

    allow: NetworkSet = field(default_factory=NetworkSet)
    deny: NetworkSet = field(default_factory=NetworkSet)
    names: NameSet = field(default_factory=NameSet)

    def decide(self, address: IPv4Address, name: str | None = None) -> Decision:
        """May a connection to `address`, showing `name` (normalised), pass?"""
        if name is not None and (pattern := self.names.match(name)) is not None:
            return Decision(True, Reason.ALLOWED_NAME, pattern)
        if (allowed := self.allow.find(address)) is not None:
            return Decision(True, Reason.ALLOWED_ADDRESS, str(allowed))
        if (denied := self.deny.find(address)) is not None:
            return Decision(False, Reason.DENIED_ADDRESS, str(denied))
        return Decision(True, Reason.DEFAULT_ALLOW)

    @property
    def resolver(self) -> ResolverAccess:
        """All where the resolver passes as an address; else the allowed names, if any."""
        if self.decide(RESOLVER).allowed:
            return ResolverAccess.ALL
        return ResolverAccess.NAMES if self.names else ResolverAccess.NONE

    def to_json(self) -> dict[str, list[str]]:
        """The form that travels between processes."""
        return {
            "allow": [str(network) for network in self.allow.networks],
            "deny": [str(network) for network in self.deny.networks],
            "names": self.names.patterns(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> EgressPolicy:
        """The inverse of :meth:`to_json`. Raises ValueError on anything malformed."""
        return cls(
            allow=NetworkSet(IPv4Network(entry) for entry in data["allow"]),
            deny=NetworkSet(IPv4Network(entry) for entry in data["deny"]),
            names=NameSet.of(data["names"]),
        )


def parse_policy(
    allow_out: Sequence[object] | None,
    deny_out: Sequence[object] | None,
    *,
    internet: bool = True,
) -> EgressPolicy:
    """Parse what a user wrote.

    `internet=False` stands for denying every address, as E2B's `allow_internet_access` does; the
    entries of `allow_out` still win. Raises :class:`PolicyError`.
    """
    allow: list[IPv4Network] = []
    names: list[str] = []
    for entry in _entries(allow_out, "allowOut"):
        network = _parse_network(entry, "allowOut")
        if network is not None:
            allow.append(network)
        else:
            names.append(normalise_pattern(entry, "allowOut"))
    deny: list[IPv4Network] = []
    for entry in _entries(deny_out, "denyOut"):
        network = _parse_network(entry, "denyOut")
        if network is None:
            why = _why_no_name(entry) or "names can only be allowed, by allowOut"
            raise PolicyError(f"invalid denied CIDR {entry}: {why}", field="denyOut", entry=entry)
        deny.append(network)
    everything = IPv4Network(ALL_TRAFFIC)
    if not internet:
        deny = [everything]
    if names and everything not in deny:
        raise PolicyError(_NEEDS_DENY_ALL, field="denyOut")
    return EgressPolicy(NetworkSet(allow), NetworkSet(deny), NameSet.of(names))


def normalise_name(name: str) -> str | None:
    """A host name as it is compared: lower case, no trailing dot. None if it is not a host name.

    An address is not a name, so that `Host: 1.2.3.4` is judged by address.
    """
    if not name.isascii():  # before lower(), which maps the Kelvin sign to a "k"
        return None
    name = name.lower().removesuffix(".")
    if not 0 < len(name) <= 253:
        return None
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        return None
    return name


def normalise_pattern(entry: str, field: str) -> str:
    """A name or wildcard as it is stored. Raises :class:`PolicyError` saying what is wrong."""

    def refuse(why: str) -> PolicyError:
        return PolicyError(f"invalid entry {entry!r} in {field}: {why}", field=field, entry=entry)

    if entry == "*":
        return entry
    if (why := _why_no_name(entry)) is not None:
        raise refuse(why)
    prefix, name = ("*.", entry[2:]) if entry.startswith("*.") else ("", entry)
    if "*" in name:
        raise refuse("a wildcard is '*' alone or '*.' in front of a name")
    normalised = normalise_name(name)
    if normalised is None:
        raise refuse("neither an IPv4 address, a CIDR range nor a valid host name")
    return prefix + normalised


def _why_no_name(entry: str) -> str | None:
    """What `entry`, which is no IPv4 range, looks like, if that is not a name."""
    if not entry.isascii():
        return "write an international name in its ASCII form (xn--...)"
    if _is_ipv6(entry):
        return "IPv6 is not offered to sandboxes; use IPv4 addresses"
    if "/" in entry:
        return "expected an IP address, a CIDR range or a name, not a URL or path"
    if ":" in entry:
        return "ports are not supported; write the address or name alone"
    return None


def _entries(values: Sequence[object] | None, field: str) -> list[str]:
    if values is None:
        return []
    if len(values) > MAX_ENTRIES:
        raise PolicyError(
            f"{field} has {len(values)} entries; at most {MAX_ENTRIES} are supported", field=field
        )
    for value in values:
        if not isinstance(value, str):
            raise PolicyError(
                f"invalid entry {value!r} in {field}: expected a string", field=field, entry=value
            )
    return [str(value) for value in values]


def _parse_network(entry: str, field: str) -> IPv4Network | None:
    """The range that `entry` denotes (host bits cleared), or None if it does not look like one."""
    if not _ADDRESS.fullmatch(entry):
        return None
    try:
        network = IPv4Network(entry, strict=False)
        if entry.partition("/")[2].startswith("0") and network.prefixlen != 0:
            raise ValueError("leading zeros are not permitted in the prefix length")
    except ValueError as error:
        raise PolicyError(
            f"invalid {'denied' if field == 'denyOut' else 'allowed'} CIDR {entry}: {error}",
            field=field,
            entry=entry,
        ) from None
    if int(network.network_address) == 0 and network.prefixlen != 0:
        raise PolicyError(
            f"invalid entry {entry!r} in {field}: 0.0.0.0 is no destination; "
            f"write {ALL_TRAFFIC} for all traffic",
            field=field,
            entry=entry,
        )
    return network


def _is_ipv6(entry: str) -> bool:
    try:
        IPv6Network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
    return True
