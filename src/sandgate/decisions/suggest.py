"""The smallest policy that covers what a decision log has seen. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any

from sandgate.policy import ALL_TRAFFIC, normalise_name
from sandgate.reasons import Reason

_WEB_PORTS = (80, 443)
"""What a name stands for that has no port beside it."""
_WITH_NAMES = ("http", "tls", "tcp")
"""Protocols in which a name may be shown to the gateway, and then decides."""
_BEYOND_POLICY = frozenset(
    {
        Reason.ALWAYS_DENIED,
        Reason.SPOOFED_SOURCE,
        Reason.IPV6,
        Reason.IP_OPTIONS,
        Reason.RECORD_TYPE,
        Reason.BAD_REQUEST,
        Reason.UNKNOWN_SANDBOX,
    }
)
"""Refusals that no policy of addresses and names would change."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that a log has seen."""

    protocol: str
    destination: str
    port: int
    name: str | None
    allowed: bool
    reason: Reason

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Seen:
        """From a decision as the API gives it. Raises KeyError, ValueError."""
        return cls(
            row["protocol"],
            row["destination"],
            row["port"],
            row["name"],
            row["verdict"] == "allow",
            Reason(row["reason"]),
        )

    @property
    def coverable(self) -> bool:
        """Can a policy let it pass?"""
        return self.allowed or self.reason not in _BEYOND_POLICY


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A policy, as a user writes it."""

    allow_out: tuple[str, ...]
    deny_out: tuple[str, ...] = (ALL_TRAFFIC,)

    def as_python(self) -> str:
        """The argument of `Sandbox.create`."""
        value = {"allow_out": list(self.allow_out), "deny_out": list(self.deny_out)}
        return f"network={json.dumps(value, indent=4)}"

    def as_json(self) -> dict[str, list[str]]:
        """The body of the REST API."""
        return {"allowOut": list(self.allow_out), "denyOut": list(self.deny_out)}


def suggest(seen: Iterable[Seen], *, wildcards: bool = False, passed: bool = False) -> Suggestion:
    """Names where a name was shown, addresses elsewhere; everything else is denied.

    With `wildcards`, names that share what is after their first label become one `*.` entry. With
    `passed`, what was refused is left out.
    """
    found = [item for item in seen if item.allowed or (item.coverable and not passed)]
    named: dict[str, set[int]] = {}
    """Ports by name; 0 for those of the web."""
    addresses = []
    for item in found:
        name = None if item.name is None else normalise_name(item.name)
        if item.protocol in _WITH_NAMES and name is not None:
            named.setdefault(name, set()).add(0 if item.port in _WEB_PORTS else item.port)
        elif item.protocol != "dns":
            addresses.append(IPv4Network(IPv4Address(item.destination)))
    for item in found:
        if item.protocol == "dns" and item.name is not None:
            asked = normalise_name(item.name)
            if asked is not None:
                # To be resolved, a name may be allowed on any port.
                named.setdefault(asked, {0})
    entries = {(name, port) for name, ports in named.items() for port in ports}
    if wildcards:
        entries = _with_wildcards(entries)
    names = [f"{name}:{port}" if port else name for name, port in sorted(entries)]
    ranges = [_written(network) for network in collapse_addresses(addresses)]
    return Suggestion((*names, *ranges))


def _with_wildcards(entries: set[tuple[str, int]]) -> set[tuple[str, int]]:
    """Two or more names under one of two labels at least become a wildcard."""
    parents = Counter((name.partition(".")[2], port) for name, port in entries)
    return {
        (f"*.{parent}", port)
        if parents[parent := name.partition(".")[2], port] > 1 and "." in parent
        else (name, port)
        for name, port in entries
    }


def _written(network: IPv4Network) -> str:
    return str(network.network_address) if network.prefixlen == 32 else str(network)
