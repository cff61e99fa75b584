"""The machine's own resolvers, for the gateway to ask."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

RESOLV_CONF = Path("/etc/resolv.conf")
MAX_RESOLVERS = 3
"""As in resolv.conf(5); more are ignored there too."""


def parse_resolv_conf(text: str) -> tuple[IPv4Address, ...]:
    """The IPv4 name servers in the order they are listed, at most three; IPv6 ones are skipped."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(IPv4Address(words[1]))
            except ValueError:
                continue
    return tuple(found[:MAX_RESOLVERS])


def machine_resolvers(path: Path = RESOLV_CONF) -> tuple[IPv4Address, ...]:
    """What resolv.conf(5) lists; empty if the file cannot be read."""
    try:
        return parse_resolv_conf(path.read_text(errors="replace"))
    except OSError:
        return ()
