"""The model's decisions: pure."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

ALWAYS_DENIED = (
    *("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16"),
)
_ALWAYS_DENIED_6 = tuple(map(IPv6Network, ("::1/128", "fc00::/7", "fe80::/10")))
_NETWORKS = tuple(map(IPv4Network, ALWAYS_DENIED))
RESOLVER = "8.8.8.8/32"
PEEK = 4096
"""Bytes that are looked at; a TLS record or a request head that is longer is not understood."""


@dataclass(frozen=True, slots=True)
class Config:
    """One sandbox's policy, sorted into names and addresses."""

    names: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    @classmethod
    def of(cls, allow: Sequence[str], deny: Sequence[str]) -> Config:
        """What is no address is a name, and where there is a name the resolver is allowed."""
        addresses = [entry for entry in allow if is_address(entry)]
        names = [entry.lower() for entry in allow if not is_address(entry)]
        if names:
            addresses.append(RESOLVER)
        return cls(tuple(names), tuple(addresses), tuple(deny))


def is_address(entry: str) -> bool:
    """Is it an IPv4 address or network, and no name?"""
    try:
        IPv4Network(entry)
    except ValueError:
        return False
    return True


def always_denied(address: str) -> bool:
    """Is an address refused when it is dialled? A mapped address counts as the one inside."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is None:
            return any(parsed in network for network in _ALWAYS_DENIED_6)
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in _NETWORKS)


def decide(config: Config, name: str, address: str) -> str | None:
    """What to dial for a connection: the name, the address, or nothing."""
    if name and any(_matches(entry, name.lower()) for entry in config.names):
        return name
    if _inside(address, config.allow):
        return address
    if _inside(address, config.deny):
        return None
    return address


def _matches(entry: str, name: str) -> bool:
    if entry.startswith("*."):
        return name.endswith(entry[1:])
    return entry in ("*", name)


def _inside(address: str, networks: Sequence[str]) -> bool:
    return any(IPv4Address(address) in IPv4Network(network) for network in networks)


def server_name(data: bytes) -> str | None:
    """The server name of the first TLS record; "" if there is none, None if more is needed."""
    if data[:1] not in (b"", b"\x16"):
        return ""
    if len(data) < 5:
        return None
    end = 5 + int(struct.unpack("!H", data[3:5])[0])
    if end > PEEK:
        return ""
    if len(data) < end:
        return None
    try:
        return _from_hello(data[5:end])
    except (IndexError, struct.error, UnicodeDecodeError, ValueError):
        return ""


def _from_hello(message: bytes) -> str:
    if message[0] != 1 or int.from_bytes(message[1:4], "big") + 4 != len(message):
        return ""
    at = 4 + 2 + 32
    at += 1 + message[at]
    at += 2 + int(struct.unpack_from("!H", message, at)[0])
    at += 1 + message[at]
    at += 2
    seen: set[int] = set()
    name = ""
    while at < len(message):
        kind, size = struct.unpack_from("!HH", message, at)
        body = message[at + 4 : at + 4 + size]
        if kind in seen:
            return ""
        seen.add(kind)
        if kind == 0:
            length = int(struct.unpack_from("!H", body, 3)[0])
            if len(body) != 5 + length:
                return ""  # several names
            name = body[5:].decode("ascii")
        at += 4 + size
    return "" if name.endswith(".") else name


def host(data: bytes) -> str | None:
    """The host of the first request; "" if there is none, None if more is needed."""
    if data and not data[:1].isupper():
        return ""
    text = data[:PEEK].decode("latin-1").replace("\r\n", "\n")  # a bare LF ends a line, too
    head, end, _ = text.partition("\n\n")
    if not end:
        return None if len(data) < PEEK else _scan(text)
    lines: list[str] = []
    for line in head.split("\n"):
        if line[:1] in (" ", "\t") and lines:
            lines[-1] += " " + line.strip()  # a folded line goes on
        else:
            lines.append(line)
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return ""
    fields = [line.partition(":") for line in lines[1:]]
    if any(not colon or " " in key or "\0" in value for key, colon, value in fields):
        return ""
    lengths = {value.strip() for key, _, value in fields if key.lower() == "content-length"}
    hosts = [value.strip() for key, _, value in fields if key.lower() == "host"]
    if len(hosts) > 1 or len(lengths) > 1:
        return ""
    if words[0] == "CONNECT":
        return words[1]
    if words[1].startswith("http://"):
        return words[1].removeprefix("http://").partition("/")[0]
    return hosts[0] if hosts else ""


def _scan(text: str) -> str:
    """For heads that are too long: any line that begins as a Host does."""
    for line in text.split("\n"):
        if line.startswith(("Host:", "host:")):
            return line[5:].strip()
    return ""
