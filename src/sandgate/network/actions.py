"""What a rule does with a packet. Names follow nft's language. Pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

from sandgate.network import expressions as e
from sandgate.network.matches import OFFSETS
from sandgate.network.netlink import attribute, text
from sandgate.network.statements import Statement


def address_vmap(field: str, map_name: str) -> Statement:
    """The verdict that the map has for the packet's `saddr` or `daddr`, if any."""
    return Statement(
        f"ip {field} vmap @{map_name}",
        e.is_ipv4()
        + e.payload(e.PAYLOAD_NETWORK, OFFSETS[field], 4)
        + e.lookup(map_name, attribute(3, e.network(e.REGISTER_VERDICT))),
    )


def mark_set(value: int) -> Statement:
    """Put the mark on the packet."""
    load = e.immediate(e.REGISTER_1, e.host(value))
    store = e.expression(
        "meta", attribute(2, e.network(e.META_MARK)), attribute(3, e.network(e.REGISTER_1))
    )
    return Statement(f"meta mark set {value:#010x}", load + store)


def ct_mark_set_saddr() -> Statement:
    """Put the source address on the connection as its mark; see :func:`saddr_mark`."""
    store = e.expression(
        "ct", attribute(2, e.network(e.CT_MARK)), attribute(4, e.network(e.REGISTER_1))
    )
    return Statement(
        "ct mark set ip saddr", e.is_ipv4() + e.payload(e.PAYLOAD_NETWORK, 12, 4) + store
    )


def saddr_mark(address: IPv4Address) -> int:
    """The mark that :func:`ct_mark_set_saddr` puts on connections from this address."""
    value: int = struct.unpack("=I", address.packed)[0]
    return value


def tproxy(address: IPv4Address, port: int) -> Statement:
    """Hand the packet to the transparent socket for it, or to the listener at `address`:`port`.

    With neither, the rule does not match and the next is tried.
    """
    return Statement(
        f"tproxy ip to {address}:{port}",
        e.immediate(e.REGISTER_1, address.packed)
        + e.immediate(e.REGISTER_2, port.to_bytes(2))
        + e.expression(
            "tproxy",
            attribute(1, e.network(e.NFPROTO_IPV4)),
            attribute(2, e.network(e.REGISTER_1)),
            attribute(3, e.network(e.REGISTER_2)),
        ),
    )


def dnat_ipv4(address: IPv4Address) -> Statement:
    """Send the connection to this address instead, same port."""
    return Statement(
        f"dnat ip to {address}",
        e.immediate(e.REGISTER_1, address.packed)
        + e.expression(
            "nat",
            attribute(1, e.network(e.NAT_DESTINATION)),
            attribute(2, e.network(e.NFPROTO_IPV4)),
            attribute(3, e.network(e.REGISTER_1)),
        ),
    )


def masquerade() -> Statement:
    """Replace the source by the address of the interface that the packet leaves by."""
    return Statement("masquerade", e.expression("masq"))


def reject_with_tcp_reset() -> Statement:
    """Answer with a TCP reset. The rule must match on TCP."""
    kind, code = attribute(1, e.network(e.REJECT_TCP_RESET)), attribute(2, b"\0")
    return Statement("reject with tcp reset", e.expression("reject", kind, code))


def reject_as_prohibited() -> Statement:
    """Answer with ICMP: administratively prohibited."""
    kind = attribute(1, e.network(e.REJECT_ICMPX))
    code = attribute(2, bytes((e.ICMPX_ADMIN_PROHIBITED,)))
    return Statement("reject with icmpx admin-prohibited", e.expression("reject", kind, code))


def log(prefix: str, group: int, length: int) -> Statement:
    """Hand the packet's first `length` bytes to who listens to the group; never waits for them."""
    return Statement(
        f'log prefix "{prefix}" group {group} snaplen {length}',
        e.expression(
            "log",
            attribute(1, group.to_bytes(2)),
            text(2, prefix),
            attribute(3, e.network(length)),
        ),
    )


def ct_timeout_set(name: str) -> Statement:
    """Let the connection, whose first packet this is, have the named timeouts."""
    number = attribute(1, e.network(e.OBJECT_CT_TIMEOUT))
    return Statement(f'ct timeout set "{name}"', e.expression("objref", number, text(2, name)))


def notrack() -> Statement:
    """Keep connection tracking from seeing the packet."""
    return Statement("notrack", e.expression("notrack"))


@e.encoded_once
def accept() -> Statement:
    """Pass this hook."""
    return Statement("accept", e.verdict(e.ACCEPT))


def drop() -> Statement:
    """Discard, silently."""
    return Statement("drop", e.verdict(e.DROP))


@e.encoded_once
def jump(chain: str) -> Statement:
    """Go through `chain` and come back if it decides nothing."""
    return Statement(f"jump {chain}", e.verdict(e.JUMP, chain))


@e.encoded_once
def goto(chain: str) -> Statement:
    """Go through `chain` and return to where this chain was called from."""
    return Statement(f"goto {chain}", e.verdict(e.GOTO, chain))


def back() -> Statement:
    """Go back to where this chain was called from."""
    return Statement("return", e.verdict(e.RETURN))


def verdict_data(code: str, chain: str | None = None) -> bytes:
    """A verdict as a map's data: `accept`, or `jump` with a chain."""
    return e.verdict_data({"accept": e.ACCEPT, "jump": e.JUMP}[code], chain)
