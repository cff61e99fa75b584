"""The parts that nftables rules are made of: each with its words in nft's language and the
kernel's expressions for it (linux/netfilter/nf_tables.h). Pure.

The words are those that `nft list ruleset` prints, so a rule can be shown, compared in a test, and
checked against what the kernel says it has. Names follow nft's language too.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network

from sandgate.network.netlink import attribute, nested, text

_TCP, _UDP = 6, 17
_NFPROTO_IPV4 = 2

_REGISTER_VERDICT, _REGISTER_1, _REGISTER_2 = 0, 1, 2
_REGISTER32_1, _REGISTER32_4 = 9, 12
"""Bytes 4 to 7 of register 1, and the four that follow its 16: for concatenated keys."""

_EQUAL, _NOT_EQUAL, _GREATER = 0, 1, 4
_META_MARK, _META_IIFNAME, _META_OIFNAME = 3, 6, 7
_META_SKUID, _META_NFPROTO, _META_L4PROTO = 10, 15, 16
_PAYLOAD_NETWORK, _PAYLOAD_TRANSPORT = 1, 2
_CT_STATE, _CT_DIRECTION, _CT_STATUS, _CT_MARK, _CT_DST_IP = 0, 1, 2, 3, 20
_IPS_SRC_NAT = 1 << 4
_FIB_RESULT_ADDRTYPE, _FIB_F_DADDR, _RTN_UNICAST = 3, 2, 1
_SOCKET_TRANSPARENT = 0
_REJECT_TCP_RESET, _REJECT_ICMPX, _ICMPX_ADMIN_PROHIBITED = 1, 2, 3
_NAT_DESTINATION = 1
_LOOKUP_INVERTED = 1
_ACCEPT, _DROP, _JUMP, _GOTO = 1, 0, -3, -4
_OFFSETS = {"saddr": 12, "daddr": 16}

CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8}

_encoded_once = lru_cache(maxsize=128)
"""For what many sandboxes' rules have in common: encoding it is most of the work of `apply`."""


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
    return _interface("iifname", _META_IIFNAME, name, _EQUAL)


def iifname_not(name: str) -> Statement:
    """The packet did not come in by this interface; `name` may end in `*`."""
    return _interface("iifname", _META_IIFNAME, name, _NOT_EQUAL)


def oifname(name: str) -> Statement:
    """The packet leaves by this interface; `name` may end in `*`."""
    return _interface("oifname", _META_OIFNAME, name, _EQUAL)


def oifname_not(name: str) -> Statement:
    """The packet does not leave by this interface; `name` may end in `*`."""
    return _interface("oifname", _META_OIFNAME, name, _NOT_EQUAL)


def not_ipv4() -> Statement:
    """IPv6, as nothing else passes an `inet` table."""
    return Statement(
        "meta nfproto != ipv4", _meta(_META_NFPROTO) + _compare(_NOT_EQUAL, bytes((_NFPROTO_IPV4,)))
    )


def l4proto(name: str) -> Statement:
    """The transport protocol: `tcp` or `udp`."""
    return Statement(f"meta l4proto {name}", _is_protocol(name))


def mark(value: int) -> Statement:
    """The packet carries this mark."""
    return Statement(f"meta mark {value:#010x}", _meta(_META_MARK) + _compare(_EQUAL, _host(value)))


def skuid(uid: int) -> Statement:
    """The packet is of a socket that a process with this uid made."""
    return Statement(f"meta skuid {uid}", _meta(_META_SKUID) + _compare(_EQUAL, _host(uid)))


def ip_saddr(network: IPv4Network | IPv4Address) -> Statement:
    """IPv4, from this range or address."""
    return _address("saddr", network)


@_encoded_once
def ip_daddr(network: IPv4Network | IPv4Address) -> Statement:
    """IPv4, to this range or address."""
    return _address("daddr", network)


def ip_in(field: str, set_name: str) -> Statement:
    """IPv4, with its `saddr` or `daddr` in the named set."""
    return Statement(
        f"ip {field} @{set_name}",
        _is_ipv4() + _payload(_PAYLOAD_NETWORK, _OFFSETS[field], 4) + _lookup(set_name),
    )


def ip_hdrlength_above(words: int) -> Statement:
    """The IPv4 header has more than `words` 32-bit words; above 5 it carries options."""
    return Statement(
        f"ip hdrlength > {words}",
        _is_ipv4()
        + _payload(_PAYLOAD_NETWORK, 0, 1)
        + _masked(b"\x0f")
        + _compare(_GREATER, bytes((words,))),
    )


@_encoded_once
def dport(protocol: str, port: int) -> Statement:
    """TCP or UDP to this port."""
    return Statement(
        f"{protocol} dport {port}",
        _is_protocol(protocol)
        + _payload(_PAYLOAD_TRANSPORT, 2, 2)
        + _compare(_EQUAL, port.to_bytes(2)),
    )


def saddr_dport_in(set_name: str) -> Statement:
    """TCP, with its source address and destination port together in the named set."""
    return Statement(
        f"ip saddr . tcp dport @{set_name}",
        _is_ipv4()
        + _is_protocol("tcp")
        + _payload(_PAYLOAD_NETWORK, _OFFSETS["saddr"], 4)
        + _payload(_PAYLOAD_TRANSPORT, 2, 2, _REGISTER32_1)
        + _lookup(set_name),
    )


def saddr_daddr_in(set_name: str) -> Statement:
    """IPv4, with its source and destination address together in the named set."""
    return Statement(
        f"ip saddr . ip daddr @{set_name}",
        _is_ipv4()
        + _payload(_PAYLOAD_NETWORK, _OFFSETS["saddr"], 4)
        + _payload(_PAYLOAD_NETWORK, _OFFSETS["daddr"], 4, _REGISTER32_1)
        + _lookup(set_name),
    )


def ct_source_translated() -> Statement:
    """The connection leaves with another source address: it was forwarded."""
    return Statement("ct status snat", _source_nat() + _compare(_NOT_EQUAL, _host(0)))


def ct_source_not_translated() -> Statement:
    """The connection ends on this machine, or has not left it yet."""
    return Statement("ct status ! snat", _source_nat() + _compare(_EQUAL, _host(0)))


def ct_state(*states: str) -> Statement:
    """Connection tracking has the packet in one of these states."""
    value = _host(sum(CT_STATES[state] for state in states))
    return Statement(
        f"ct state {','.join(states)}",
        _ct(_CT_STATE) + _masked(value) + _compare(_NOT_EQUAL, _host(0)),
    )


def ct_direction_reply() -> Statement:
    """The packet answers the side that opened the connection."""
    return Statement("ct direction reply", _ct(_CT_DIRECTION) + _compare(_EQUAL, b"\x01"))


def ct_original_daddr_in(set_name: str) -> Statement:
    """The connection was opened to an address in the named set."""
    return Statement(
        f"ct original ip daddr @{set_name}",
        _ct(_CT_DST_IP, direction=0) + _lookup(set_name),
    )


def fib_daddr_not_unicast() -> Statement:
    """The destination is one of this machine's addresses, broadcast, multicast or the like."""
    fib = _expression(
        "fib",
        attribute(1, _network(_REGISTER_1)),
        attribute(2, _network(_FIB_RESULT_ADDRTYPE)),
        attribute(3, _network(_FIB_F_DADDR)),
    )
    return Statement("fib daddr type != unicast", fib + _compare(_NOT_EQUAL, _host(_RTN_UNICAST)))


def socket_transparent(value: int) -> Statement:
    """There is a socket for the packet, and its IP_TRANSPARENT option is `value`."""
    socket = _expression(
        "socket",
        attribute(1, _network(_SOCKET_TRANSPARENT)),
        attribute(2, _network(_REGISTER_1)),
    )
    return Statement(f"socket transparent {value}", socket + _compare(_EQUAL, bytes((value,))))


def unknown_link(set_name: str) -> Statement:
    """Interface and source address are not together in the named set."""
    return Statement(
        f"iifname . ip saddr != @{set_name}",
        _is_ipv4()
        + _meta(_META_IIFNAME)
        + _payload(_PAYLOAD_NETWORK, 12, 4, _REGISTER32_4)
        + _lookup(set_name, attribute(5, _network(_LOOKUP_INVERTED))),
    )


def address_vmap(field: str, map_name: str) -> Statement:
    """The verdict that the map has for the packet's `saddr` or `daddr`, if any."""
    return Statement(
        f"ip {field} vmap @{map_name}",
        _is_ipv4()
        + _payload(_PAYLOAD_NETWORK, _OFFSETS[field], 4)
        + _lookup(map_name, attribute(3, _network(_REGISTER_VERDICT))),
    )


def mark_set(value: int) -> Statement:
    """Put the mark on the packet."""
    load = _immediate(_REGISTER_1, _host(value))
    store = _expression(
        "meta", attribute(2, _network(_META_MARK)), attribute(3, _network(_REGISTER_1))
    )
    return Statement(f"meta mark set {value:#010x}", load + store)


def ct_mark_set_saddr() -> Statement:
    """Put the source address on the connection as its mark; see :func:`saddr_mark`."""
    store = _expression("ct", attribute(2, _network(_CT_MARK)), attribute(4, _network(_REGISTER_1)))
    return Statement("ct mark set ip saddr", _is_ipv4() + _payload(_PAYLOAD_NETWORK, 12, 4) + store)


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
        _immediate(_REGISTER_1, address.packed)
        + _immediate(_REGISTER_2, port.to_bytes(2))
        + _expression(
            "tproxy",
            attribute(1, _network(_NFPROTO_IPV4)),
            attribute(2, _network(_REGISTER_1)),
            attribute(3, _network(_REGISTER_2)),
        ),
    )


def dnat_ipv4(address: IPv4Address) -> Statement:
    """Send the connection to this address instead, same port."""
    return Statement(
        f"dnat ip to {address}",
        _immediate(_REGISTER_1, address.packed)
        + _expression(
            "nat",
            attribute(1, _network(_NAT_DESTINATION)),
            attribute(2, _network(_NFPROTO_IPV4)),
            attribute(3, _network(_REGISTER_1)),
        ),
    )


def masquerade() -> Statement:
    """Replace the source by the address of the interface that the packet leaves by."""
    return Statement("masquerade", _expression("masq"))


def reject_with_tcp_reset() -> Statement:
    """Answer with a TCP reset. The rule must match on TCP."""
    kind, code = attribute(1, _network(_REJECT_TCP_RESET)), attribute(2, b"\0")
    return Statement("reject with tcp reset", _expression("reject", kind, code))


def reject_as_prohibited() -> Statement:
    """Answer with ICMP: administratively prohibited."""
    kind = attribute(1, _network(_REJECT_ICMPX))
    code = attribute(2, bytes((_ICMPX_ADMIN_PROHIBITED,)))
    return Statement("reject with icmpx admin-prohibited", _expression("reject", kind, code))


def notrack() -> Statement:
    """Keep connection tracking from seeing the packet."""
    return Statement("notrack", _expression("notrack"))


@_encoded_once
def accept() -> Statement:
    """Pass this hook."""
    return Statement("accept", _verdict(_ACCEPT))


def drop() -> Statement:
    """Discard, silently."""
    return Statement("drop", _verdict(_DROP))


@_encoded_once
def jump(chain: str) -> Statement:
    """Go through `chain` and come back if it decides nothing."""
    return Statement(f"jump {chain}", _verdict(_JUMP, chain))


@_encoded_once
def goto(chain: str) -> Statement:
    """Go through `chain` and return to where this chain was called from."""
    return Statement(f"goto {chain}", _verdict(_GOTO, chain))


def verdict_data(code: str, chain: str | None = None) -> bytes:
    """A verdict as a map's data: `accept`, or `jump` with a chain."""
    return _verdict_data({"accept": _ACCEPT, "jump": _JUMP}[code], chain)


def _network(value: int) -> bytes:
    """32 bits in network order, as all of nf_tables' own numbers are."""
    return struct.pack(">I", value & 0xFFFFFFFF)


def _host(value: int) -> bytes:
    """32 bits in host order, as the kernel keeps marks, uids and states in registers."""
    return struct.pack("=I", value)


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *data))


def _verdict_data(code: int, chain: str | None = None) -> bytes:
    name = text(2, chain) if chain is not None else b""
    return nested(2, attribute(1, _network(code)), name)


def _verdict(code: int, chain: str | None = None) -> bytes:
    register = attribute(1, _network(_REGISTER_VERDICT))
    return _expression("immediate", register, nested(2, _verdict_data(code, chain)))


def _immediate(register: int, value: bytes) -> bytes:
    return _expression(
        "immediate", attribute(1, _network(register)), nested(2, attribute(1, value))
    )


@_encoded_once
def _meta(key: int) -> bytes:
    return _expression("meta", attribute(1, _network(_REGISTER_1)), attribute(2, _network(key)))


@_encoded_once
def _ct(key: int, direction: int | None = None) -> bytes:
    parts = [attribute(1, _network(_REGISTER_1)), attribute(2, _network(key))]
    if direction is not None:
        parts.append(attribute(3, bytes((direction,))))
    return _expression("ct", *parts)


def _source_nat() -> bytes:
    return _ct(_CT_STATUS) + _masked(_host(_IPS_SRC_NAT))


@_encoded_once
def _payload(base: int, offset: int, length: int, register: int = _REGISTER_1) -> bytes:
    return _expression(
        "payload",
        attribute(1, _network(register)),
        attribute(2, _network(base)),
        attribute(3, _network(offset)),
        attribute(4, _network(length)),
    )


@_encoded_once
def _masked(mask: bytes) -> bytes:
    """Register 1 and `mask`."""
    return _expression(
        "bitwise",
        attribute(1, _network(_REGISTER_1)),
        attribute(2, _network(_REGISTER_1)),
        attribute(3, _network(len(mask))),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def _compare(operator: int, value: bytes) -> bytes:
    return _expression(
        "cmp",
        attribute(1, _network(_REGISTER_1)),
        attribute(2, _network(operator)),
        nested(3, attribute(1, value)),
    )


def _lookup(set_name: str, *more: bytes) -> bytes:
    return _expression("lookup", text(1, set_name), attribute(2, _network(_REGISTER_1)), *more)


@_encoded_once
def _is_protocol(name: str) -> bytes:
    number = {"tcp": _TCP, "udp": _UDP}[name]
    return _meta(_META_L4PROTO) + _compare(_EQUAL, bytes((number,)))


@_encoded_once
def _is_ipv4() -> bytes:
    return _meta(_META_NFPROTO) + _compare(_EQUAL, bytes((_NFPROTO_IPV4,)))


def _interface(word: str, key: int, name: str, operator: int) -> Statement:
    # A shorter value compares the beginning only, which is what a name ending in `*` means.
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    sign = "!= " if operator == _NOT_EQUAL else ""
    return Statement(f'{word} {sign}"{name}"', _meta(key) + _compare(operator, value))


def _address(field: str, network: IPv4Network | IPv4Address) -> Statement:
    expressions = _is_ipv4() + _payload(_PAYLOAD_NETWORK, _OFFSETS[field], 4)
    if isinstance(network, IPv4Network):
        if network.prefixlen < 32:
            expressions += _masked(network.netmask.packed)
        value = network.network_address.packed
    else:
        value = network.packed
    return Statement(f"ip {field} {network}", expressions + _compare(_EQUAL, value))
