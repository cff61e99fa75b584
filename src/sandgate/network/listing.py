"""What the kernel has of nftables: comments, counters, keys and names, whoever put them there."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sandgate.network import nft_numbers as nft
from sandgate.network.netlink import Message, NetlinkSocket, attributes, text


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A base chain of any table, as far as it matters to another: where, and its default."""

    table: str
    name: str
    hook: int
    drops: bool


def read_comment(socket: NetlinkSocket, name: str) -> str | None:
    """The comment of an `inet` table, or None without table or comment."""
    header = struct.pack(">BBH", nft.INET, 0, 0)
    request = Message(nft.SUBSYSTEM | nft.GETTABLE, 0, header, "nftables: list tables")
    for payload in socket.dump(request):
        found = dict(attributes(payload[4:]))
        if found.get(nft.TABLE_NAME) == name.encode() + b"\0":
            data = found.get(nft.TABLE_USERDATA, b"")
            if len(data) > 2 and data[0] == nft.COMMENT:
                return data[2 : 2 + data[1]].rstrip(b"\0").decode(errors="replace")
    return None


def read_meter(socket: NetlinkSocket, table: str, name: str) -> dict[str, int]:
    """How many packets a meter has counted, by interface. A bucket that was given up is not there.

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    body = (
        struct.pack(">BBH", nft.INET, 0, 0) + text(nft.ELEM_TABLE, table) + text(nft.ELEM_SET, name)
    )
    request = Message(nft.SUBSYSTEM | nft.GETSETELEM, 0, body, f"nftables: list set {name}")
    found = {}
    for payload in socket.dump(request):
        for _, element in attributes(dict(attributes(payload[4:])).get(nft.ELEM_ELEMENTS, b"")):
            parts = dict(attributes(element))
            key = dict(attributes(parts[nft.ELEM_KEY]))[1]
            for _, expression in attributes(parts.get(nft.ELEM_EXPRESSIONS, b"")):
                words = dict(attributes(expression))
                if words[1] == b"counter\0":
                    packets = dict(attributes(words[2]))[2]
                    found[_string(key)] = int.from_bytes(packets)
    return found


def list_keys(socket: NetlinkSocket, table: str, name: str) -> list[bytes]:
    """The keys of a set or a map. Raises :class:`~sandgate.network.netlink.NetlinkError`."""
    body = (
        struct.pack(">BBH", nft.INET, 0, 0) + text(nft.ELEM_TABLE, table) + text(nft.ELEM_SET, name)
    )
    request = Message(nft.SUBSYSTEM | nft.GETSETELEM, 0, body, f"nftables: list set {name}")
    return [
        dict(attributes(dict(attributes(element))[nft.ELEM_KEY]))[1]
        for payload in socket.dump(request)
        for _, element in attributes(dict(attributes(payload[4:])).get(nft.ELEM_ELEMENTS, b""))
    ]


def list_names(socket: NetlinkSocket, table: str) -> list[str]:
    """The names of a table's chains and sets. Raises NetlinkError."""
    names = []
    body = struct.pack(">BBH", nft.INET, 0, 0)
    for kind, own in ((nft.GETCHAIN, nft.CHAIN_TABLE), (nft.GETSET, nft.SET_TABLE)):
        request = Message(nft.SUBSYSTEM | kind, 0, body, "nftables: list chains and sets")
        for payload in socket.dump(request):
            found = dict(attributes(payload[4:]))
            if found.get(own) == table.encode() + b"\0":
                names.append(
                    _string(found[nft.CHAIN_NAME if kind == nft.GETCHAIN else nft.SET_NAME])
                )
    return names


def list_base_chains(socket: NetlinkSocket) -> list[ForeignChain]:
    """The base chains of all tables that see IPv4 packets."""
    request = Message(
        nft.SUBSYSTEM | nft.GETCHAIN, 0, struct.pack(">BBH", 0, 0, 0), "nftables: list chains"
    )
    chains = []
    for payload in socket.dump(request):
        found = dict(attributes(payload[4:]))
        if nft.CHAIN_HOOK not in found or payload[0] not in nft.FAMILIES:
            continue
        hook = dict(attributes(found[nft.CHAIN_HOOK]))
        chains.append(
            ForeignChain(
                table=f"{nft.FAMILIES[payload[0]]} {_string(found[nft.CHAIN_TABLE])}",
                name=_string(found[nft.CHAIN_NAME]),
                hook=int.from_bytes(hook[1]),
                drops=int.from_bytes(found.get(nft.CHAIN_POLICY, b"\1")) == 0,
            )
        )
    return chains


def _list_set(table: str, name: str) -> Message:
    header = struct.pack(">BBH", nft.INET, 0, 0)
    body = header + text(nft.ELEM_TABLE, table) + text(nft.ELEM_SET, name)
    return Message(nft.SUBSYSTEM | nft.GETSETELEM, 0, body, f"nftables: list set {name}")


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
