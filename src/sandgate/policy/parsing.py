"""What a user wrote, made a policy. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from sandgate.policy.names import normalise_name
from sandgate.policy.networks import NetworkSet
from sandgate.policy.value import EgressPolicy, Mode, split_ports

ALL_TRAFFIC = "0.0.0.0/0"
"""The range that means every address."""

MAX_ENTRIES = 10_000
"""Most entries in one list; bounds the memory a policy can take."""

MAX_DNS_SERVERS = 10
"""Most entries in `dnsServers`."""

_NEEDS_DENY_ALL = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out "
    "to block all other traffic."
)
_ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+(/\d+)?")
_ADDRESS_WITH_PORT = re.compile(r"\d+\.\d+\.\d+\.\d+(/\d+)?:.*")
_PORT = re.compile(r"[1-9]\d{0,4}")


class PolicyError(ValueError):
    """A policy that cannot be accepted: `field` is the list's wire name, `entry` what is wrong."""

    def __init__(self, message: str, *, field: str, entry: object = None) -> None:
        super().__init__(message)
        self.field = field
        self.entry = entry


def parse_policy(
    allow_out: Sequence[object] | None,
    deny_out: Sequence[object] | None,
    *,
    internet: bool = True,
    dns_servers: Sequence[object] | None = None,
    mode: Mode = Mode.ENFORCE,
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
    web, ports = split_ports(names)
    servers = None if dns_servers is None else _parse_servers(dns_servers)
    return EgressPolicy(NetworkSet(allow), NetworkSet(deny), web, ports, servers, mode)


def normalise_pattern(entry: str, field: str) -> str:
    """A name or wildcard, perhaps with a port, as it is stored.

    Raises :class:`PolicyError` saying what is wrong.
    """

    def refuse(why: str) -> PolicyError:
        return PolicyError(f"invalid entry {entry!r} in {field}: {why}", field=field, entry=entry)

    if (why := _why_no_name(entry)) is not None:
        raise refuse(why)
    pattern, colon, port = entry.partition(":")
    if colon and not (_PORT.fullmatch(port) and int(port) <= 65535):
        raise refuse(f"{port!r} is no port; write a number from 1 to 65535 after the colon")
    if pattern == "*":
        return entry
    prefix, name = ("*.", pattern[2:]) if pattern.startswith("*.") else ("", pattern)
    if "*" in name:
        raise refuse("a wildcard is '*' alone or '*.' in front of a name")
    normalised = normalise_name(name)
    if normalised is None:
        raise refuse("neither an IPv4 address, a CIDR range nor a valid host name")
    return prefix + normalised + colon + port


def _why_no_name(entry: str) -> str | None:
    """What `entry`, which is no IPv4 range, looks like, if that is not a name."""
    if not entry.isascii():
        return "write an international name in its ASCII form (xn--...)"
    if _is_ipv6(entry):
        return "IPv6 is not offered to sandboxes; use IPv4 addresses"
    if _ADDRESS_WITH_PORT.fullmatch(entry):
        return "ports are for names only; write the address or range alone, it means all ports"
    if "/" in entry:
        return "expected an IP address, a CIDR range or a name, not a URL or path"
    return None


def _parse_servers(values: Sequence[object]) -> tuple[IPv4Address, ...]:
    if len(values) > MAX_DNS_SERVERS:
        raise PolicyError(
            f"dnsServers has {len(values)} entries; at most {MAX_DNS_SERVERS} are supported",
            field="dnsServers",
        )
    servers: dict[IPv4Address, None] = {}
    for value in values:
        try:
            if not isinstance(value, str):
                raise ValueError
            server = IPv4Address(value)
        except ValueError:
            server = IPv4Address(0)
        if int(server) == 0:
            raise PolicyError(
                f"invalid entry {value!r} in dnsServers: write the IPv4 address of a server",
                field="dnsServers",
                entry=value,
            )
        servers[server] = None
    return tuple(servers)


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
