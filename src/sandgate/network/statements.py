"""The parts that nftables rules are made of: each with its words in nft's language and the
kernel's expressions for it (linux/netfilter/nf_tables.h). Pure.

The words are those that `nft list ruleset` prints, so a rule can be shown, compared in a test, and
checked against what the kernel says it has. Names follow nft's language too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sandgate.network import expressions as e
from sandgate.network.netlink import attribute, nested, text

_OFFSETS = {"saddr": 12, "daddr": 16}

CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8}


@dataclass(frozen=True, slots=True)
class Statement:
    """A match or an action. `expressions` are encoded; a rule's are concatenated."""

    words: str
    expressions: bytes


Rule = tuple[Statement, ...]
"""Matches, then actions. All matches must hold."""


def show(rule: Rule) -> str:
    """The rule in nft's language."""
    return " ".join(statement.words for statement in rule)


def iifname(name: str) -> Statement:
    """The packet came in by this interface; `name` may end in `*`."""
    return _interface("iifname", e.META_IIFNAME, name, e.EQUAL)


def iifname_not(name: str) -> Statement:
    """The packet did not come in by this interface; `name` may end in `*`."""
    return _interface("iifname", e.META_IIFNAME, name, e.NOT_EQUAL)


def oifname(name: str) -> Statement:
    """The packet leaves by this interface; `name` may end in `*`."""
    return _interface("oifname", e.META_OIFNAME, name, e.EQUAL)


def oifname_not(name: str) -> Statement:
    """The packet does not leave by this interface; `name` may end in `*`."""
    return _interface("oifname", e.META_OIFNAME, name, e.NOT_EQUAL)


def not_ipv4() -> Statement:
    """IPv6, as nothing else passes an `inet` table."""
    return Statement(
        "meta nfproto != ipv4",
        e.meta(e.META_NFPROTO) + e.compare(e.NOT_EQUAL, bytes((e.NFPROTO_IPV4,))),
    )


def l4proto(name: str) -> Statement:
    """The transport protocol: `tcp` or `udp`."""
    return Statement(f"meta l4proto {name}", e.is_protocol(name))


def mark(value: int) -> Statement:
    """The packet carries this mark."""
    return Statement(
        f"meta mark {value:#010x}", e.meta(e.META_MARK) + e.compare(e.EQUAL, e.host(value))
    )


def skuid(uid: int) -> Statement:
    """The packet is of a socket that a process with this uid made."""
    return Statement(f"meta skuid {uid}", e.meta(e.META_SKUID) + e.compare(e.EQUAL, e.host(uid)))


def ip_saddr(network: IPv4Network | IPv4Address) -> Statement:
    """IPv4, from this range or address."""
    return _address("saddr", network)


@e.encoded_once
def ip_daddr(network: IPv4Network | IPv4Address) -> Statement:
    """IPv4, to this range or address."""
    return _address("daddr", network)


def ip_in(field: str, set_name: str) -> Statement:
    """IPv4, with its `saddr` or `daddr` in the named set."""
    return Statement(
        f"ip {field} @{set_name}",
        e.is_ipv4() + e.payload(e.PAYLOAD_NETWORK, _OFFSETS[field], 4) + e.lookup(set_name),
    )


def ip_hdrlength_above(words: int) -> Statement:
    """The IPv4 header has more than `words` 32-bit words; above 5 it carries options."""
    return Statement(
        f"ip hdrlength > {words}",
        e.is_ipv4()
        + e.payload(e.PAYLOAD_NETWORK, 0, 1)
        + e.masked(b"\x0f")
        + e.compare(e.GREATER, bytes((words,))),
    )


@e.encoded_once
def dport(protocol: str, port: int) -> Statement:
    """TCP or UDP to this port."""
    return Statement(
        f"{protocol} dport {port}",
        e.is_protocol(protocol)
        + e.payload(e.PAYLOAD_TRANSPORT, 2, 2)
        + e.compare(e.EQUAL, port.to_bytes(2)),
    )


def sport(protocol: str, port: int) -> Statement:
    """TCP or UDP from this port."""
    return Statement(
        f"{protocol} sport {port}",
        e.is_protocol(protocol)
        + e.payload(e.PAYLOAD_TRANSPORT, 0, 2)
        + e.compare(e.EQUAL, port.to_bytes(2)),
    )


def saddr_dport_in(set_name: str) -> Statement:
    """TCP, with its source address and destination port together in the named set."""
    return Statement(
        f"ip saddr . tcp dport @{set_name}",
        e.is_ipv4()
        + e.is_protocol("tcp")
        + e.payload(e.PAYLOAD_NETWORK, _OFFSETS["saddr"], 4)
        + e.payload(e.PAYLOAD_TRANSPORT, 2, 2, e.REGISTER32_1)
        + e.lookup(set_name),
    )


def saddr_daddr_in(set_name: str) -> Statement:
    """IPv4, with its source and destination address together in the named set."""
    return Statement(
        f"ip saddr . ip daddr @{set_name}",
        e.is_ipv4()
        + e.payload(e.PAYLOAD_NETWORK, _OFFSETS["saddr"], 4)
        + e.payload(e.PAYLOAD_NETWORK, _OFFSETS["daddr"], 4, e.REGISTER32_1)
        + e.lookup(set_name),
    )


def ct_source_translated() -> Statement:
    """The connection leaves with another source address: it was forwarded."""
    return Statement("ct status snat", _source_nat() + e.compare(e.NOT_EQUAL, e.host(0)))


def ct_source_not_translated() -> Statement:
    """The connection ends on this machine, or has not left it yet."""
    return Statement("ct status ! snat", _source_nat() + e.compare(e.EQUAL, e.host(0)))


def ct_state(*states: str) -> Statement:
    """Connection tracking has the packet in one of these states."""
    value = e.host(sum(CT_STATES[state] for state in states))
    return Statement(
        f"ct state {','.join(states)}",
        e.ct(e.CT_STATE) + e.masked(value) + e.compare(e.NOT_EQUAL, e.host(0)),
    )


def ct_unconfirmed() -> Statement:
    """The packet begins a connection: it is the first, and not in the table yet."""
    confirmed = e.host(e.CT_CONFIRMED)
    return Statement(
        "ct status ! confirmed",
        e.ct(e.CT_STATUS) + e.masked(confirmed) + e.compare(e.EQUAL, e.host(0)),
    )


def ct_direction_reply() -> Statement:
    """The packet answers the side that opened the connection."""
    return Statement("ct direction reply", e.ct(e.CT_DIRECTION) + e.compare(e.EQUAL, b"\x01"))


def ct_original_daddr_in(set_name: str) -> Statement:
    """The connection was opened to an address in the named set."""
    return Statement(
        f"ct original ip daddr @{set_name}",
        e.ct(e.CT_DST_IP, direction=0) + e.lookup(set_name),
    )


def fib_daddr_not_unicast() -> Statement:
    """The destination is one of this machine's addresses, broadcast, multicast or the like."""
    fib = e.expression(
        "fib",
        attribute(1, e.network(e.REGISTER_1)),
        attribute(2, e.network(e.FIB_RESULT_ADDRTYPE)),
        attribute(3, e.network(e.FIB_F_DADDR)),
    )
    return Statement(
        "fib daddr type != unicast", fib + e.compare(e.NOT_EQUAL, e.host(e.RTN_UNICAST))
    )


def socket_transparent(value: int) -> Statement:
    """There is a socket for the packet, and its IP_TRANSPARENT option is `value`."""
    socket = e.expression(
        "socket",
        attribute(1, e.network(e.SOCKET_TRANSPARENT)),
        attribute(2, e.network(e.REGISTER_1)),
    )
    return Statement(f"socket transparent {value}", socket + e.compare(e.EQUAL, bytes((value,))))


def unknown_link(set_name: str) -> Statement:
    """Interface and source address are not together in the named set."""
    return Statement(
        f"iifname . ip saddr != @{set_name}",
        e.is_ipv4()
        + e.meta(e.META_IIFNAME)
        + e.payload(e.PAYLOAD_NETWORK, 12, 4, e.REGISTER32_4)
        + e.lookup(set_name, attribute(5, e.network(e.LOOKUP_INVERTED))),
    )


def address_vmap(field: str, map_name: str) -> Statement:
    """The verdict that the map has for the packet's `saddr` or `daddr`, if any."""
    return Statement(
        f"ip {field} vmap @{map_name}",
        e.is_ipv4()
        + e.payload(e.PAYLOAD_NETWORK, _OFFSETS[field], 4)
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


def above_rate_of_interface(set_name: str, rate: int, burst: int) -> Statement:
    """Packets from this interface come faster than `rate` a second, after `burst` at once.

    The set keeps a bucket for each interface, and counts the packets that match.
    """
    limit = e.expression(
        "limit",
        attribute(1, rate.to_bytes(8)),
        attribute(2, (1).to_bytes(8)),
        attribute(3, e.network(burst)),
        attribute(4, e.network(e.LIMIT_PACKETS)),
        attribute(5, e.network(e.LIMIT_INVERTED)),
    )
    update = e.expression(
        "dynset",
        text(1, set_name),
        attribute(3, e.network(e.DYNSET_UPDATE)),
        attribute(4, e.network(e.REGISTER_1)),
        attribute(9, e.network(e.DYNSET_HAS_EXPRESSIONS)),
        nested(10, limit, e.expression("counter")),
    )
    return Statement(
        f"update @{set_name} {{ iifname limit rate over {rate}/second burst {burst} packets "
        "counter }",
        e.meta(e.META_IIFNAME) + update,
    )


def above_count_of_interface(set_name: str, count: int) -> Statement:
    """With this one, more than `count` connections from this interface are in the table.

    The set keeps them for each interface; those that have ended do not count.
    """
    limit = e.expression(
        "connlimit",
        attribute(1, e.network(count)),
        attribute(2, e.network(e.CONNLIMIT_INVERTED)),
    )
    add = e.expression(
        "dynset",
        text(1, set_name),
        attribute(3, e.network(e.DYNSET_ADD)),
        attribute(4, e.network(e.REGISTER_1)),
        attribute(9, e.network(e.DYNSET_HAS_EXPRESSIONS)),
        nested(10, limit),
    )
    return Statement(
        f"add @{set_name} {{ iifname ct count over {count} }}", e.meta(e.META_IIFNAME) + add
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


def _interface(word: str, key: int, name: str, operator: int) -> Statement:
    # A shorter value compares the beginning only, which is what a name ending in `*` means.
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    sign = "!= " if operator == e.NOT_EQUAL else ""
    return Statement(f'{word} {sign}"{name}"', e.meta(key) + e.compare(operator, value))


def _address(field: str, network: IPv4Network | IPv4Address) -> Statement:
    expressions = e.is_ipv4() + e.payload(e.PAYLOAD_NETWORK, _OFFSETS[field], 4)
    if isinstance(network, IPv4Network):
        if network.prefixlen < 32:
            expressions += e.masked(network.netmask.packed)
        value = network.network_address.packed
    else:
        value = network.packed
    return Statement(f"ip {field} {network}", expressions + e.compare(e.EQUAL, value))


def _source_nat() -> bytes:
    return e.ct(e.CT_STATUS) + e.masked(e.host(e.IPS_SRC_NAT))
