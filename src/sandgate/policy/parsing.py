"""What a user wrote, made a policy. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from sandgate.policy.names import normalise_name
from sandgate.policy.networks import NetworkSet, parse_range
from sandgate.policy.value import EgressPolicy, Mode, split_ports

ALL_TRAFFIC = "0.0.0.0/0"
"""The range that means every address."""

_EVERYTHING = (0, 0xFFFFFFFF)

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
    allow: list[tuple[int, int]] = []
    names: list[str] = []
    for entry in _entries(allow_out, "allowOut"):
        found = _parse_range(entry, "allowOut")
        if found is not None:
            allow.append(found)
        else:
            names.append(normalise_pattern(entry, "allowOut"))
    deny: list[tuple[int, int]] = []
    for entry in _entries(deny_out, "denyOut"):
        found = _parse_range(entry, "denyOut")
        if found is None:
            why = _why_no_name(entry) or "names can only be allowed, by allowOut"
            raise PolicyError(f"invalid denied CIDR {entry}: {why}", field="denyOut", entry=entry)
        deny.append(found)
    if not internet:
        deny = [_EVERYTHING]
    if names and _EVERYTHING not in deny:
        raise PolicyError(_NEEDS_DENY_ALL, field="denyOut")
    web, ports = split_ports(names)
    servers = None if dns_servers is None else _parse_servers(dns_servers)
    allowed, denied = NetworkSet.of_ranges(allow), NetworkSet.of_ranges(deny)
    return EgressPolicy(allowed, denied, web, ports, servers, mode)


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


def _parse_range(entry: str, field: str) -> tuple[int, int] | None:
    """The range that `entry` denotes (host bits cleared), or None if it does not look like one."""
    if not _ADDRESS.fullmatch(entry):
        return None
    found = parse_range(entry)
    if found is None:
        raise PolicyError(
            f"invalid {'denied' if field == 'denyOut' else 'allowed'} CIDR {entry}: {_why(entry)}",
            field=field,
            entry=entry,
        )
    if found[0] == 0 and found != _EVERYTHING:
        raise PolicyError(
            f"invalid entry {entry!r} in {field}: 0.0.0.0 is no destination; "
            f"write {ALL_TRAFFIC} for all traffic",
            field=field,
            entry=entry,
        )
    return found


def _why(entry: str) -> str:
    """What is wrong with an address or a range."""
    try:
        IPv4Network(entry, strict=False)
    except ValueError as error:
        return str(error)
    return "leading zeros are not permitted in the prefix length"


def _is_ipv6(entry: str) -> bool:
    try:
        IPv6Network(entry.strip("[]"), strict=False)
    except ValueError:
        return False
    return True
