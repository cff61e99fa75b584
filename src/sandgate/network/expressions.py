"""The kernel's expressions, encoded: what a rule does step by step with the packet and registers
(linux/netfilter/nf_tables.h). Pure. Matches and actions are made of them.
"""

from __future__ import annotations

import struct
from functools import lru_cache

from sandgate.network.netlink import attribute, nested, text

TCP, UDP = 6, 17
NFPROTO_IPV4 = 2

REGISTER_VERDICT, REGISTER_1, REGISTER_2 = 0, 1, 2
REGISTER32_1, REGISTER32_4 = 9, 12
"""Bytes 4 to 7 of register 1, and the four that follow its 16: for concatenated keys."""

EQUAL, NOT_EQUAL, GREATER = 0, 1, 4
META_MARK, META_IIFNAME, META_OIFNAME = 3, 6, 7
META_SKUID, META_NFPROTO, META_L4PROTO = 10, 15, 16
PAYLOAD_NETWORK, PAYLOAD_TRANSPORT = 1, 2
CT_STATE, CT_DIRECTION, CT_STATUS, CT_MARK, CT_DST_IP = 0, 1, 2, 3, 20
CT_CONFIRMED = 8
IPS_SRC_NAT = 1 << 4
FIB_RESULT_ADDRTYPE, FIB_F_DADDR, RTN_UNICAST = 3, 2, 1
SOCKET_TRANSPARENT = 0
REJECT_TCP_RESET, REJECT_ICMPX, ICMPX_ADMIN_PROHIBITED = 1, 2, 3
NAT_DESTINATION = 1
LOOKUP_INVERTED = 1
LIMIT_PACKETS, LIMIT_INVERTED = 0, 1
DYNSET_ADD, DYNSET_UPDATE, DYNSET_HAS_EXPRESSIONS = 0, 1, 2
CONNLIMIT_INVERTED = 1
OBJECT_CT_TIMEOUT = 7
ACCEPT, DROP, JUMP, GOTO, RETURN = 1, 0, -3, -4, -5

encoded_once = lru_cache(maxsize=128)
"""For what many sandboxes' rules have in common: encoding it is most of the work of `apply`."""


def network(value: int) -> bytes:
    """32 bits in network order, as all of nf_tables' own numbers are."""
    return struct.pack(">I", value & 0xFFFFFFFF)


def host(value: int) -> bytes:
    """32 bits in host order, as the kernel keeps marks, uids and states in registers."""
    return struct.pack("=I", value)


def expression(name: str, *data: bytes) -> bytes:
    """One expression of a rule: its name and its attributes."""
    return nested(1, text(1, name), nested(2, *data))


def verdict_data(code: int, chain: str | None = None) -> bytes:
    """A verdict, and the chain it leads to, as data of a register or a map."""
    name = text(2, chain) if chain is not None else b""
    return nested(2, attribute(1, network(code)), name)


def verdict(code: int, chain: str | None = None) -> bytes:
    """Decide, or go on in `chain`."""
    register = attribute(1, network(REGISTER_VERDICT))
    return expression("immediate", register, nested(2, verdict_data(code, chain)))


def immediate(register: int, value: bytes) -> bytes:
    """Put `value` into a register."""
    return expression("immediate", attribute(1, network(register)), nested(2, attribute(1, value)))


@encoded_once
def meta(key: int) -> bytes:
    """Load what the kernel knows beside the packet into register 1."""
    return expression("meta", attribute(1, network(REGISTER_1)), attribute(2, network(key)))


@encoded_once
def ct(key: int, direction: int | None = None) -> bytes:
    """Load what connection tracking knows into register 1; `direction` 0 is the original one."""
    parts = [attribute(1, network(REGISTER_1)), attribute(2, network(key))]
    if direction is not None:
        parts.append(attribute(3, bytes((direction,))))
    return expression("ct", *parts)


@encoded_once
def payload(base: int, offset: int, length: int, register: int = REGISTER_1) -> bytes:
    """Load `length` bytes of the packet, at `offset` of the header that `base` names."""
    return expression(
        "payload",
        attribute(1, network(register)),
        attribute(2, network(base)),
        attribute(3, network(offset)),
        attribute(4, network(length)),
    )


@encoded_once
def masked(mask: bytes) -> bytes:
    """Register 1 and `mask`."""
    return expression(
        "bitwise",
        attribute(1, network(REGISTER_1)),
        attribute(2, network(REGISTER_1)),
        attribute(3, network(len(mask))),
        nested(4, attribute(1, mask)),
        nested(5, attribute(1, bytes(len(mask)))),
    )


def compare(operator: int, value: bytes) -> bytes:
    """Go on with the next rule unless register 1 and `value` compare so."""
    return expression(
        "cmp",
        attribute(1, network(REGISTER_1)),
        attribute(2, network(operator)),
        nested(3, attribute(1, value)),
    )


def lookup(set_name: str, *more: bytes) -> bytes:
    """Go on with the next rule unless register 1 is in the named set."""
    return expression("lookup", text(1, set_name), attribute(2, network(REGISTER_1)), *more)


@encoded_once
def is_protocol(name: str) -> bytes:
    """Go on with the next rule unless the packet is of `tcp` or `udp`."""
    number = {"tcp": TCP, "udp": UDP}[name]
    return meta(META_L4PROTO) + compare(EQUAL, bytes((number,)))


@encoded_once
def is_ipv4() -> bytes:
    """Go on with the next rule unless the packet is IPv4."""
    return meta(META_NFPROTO) + compare(EQUAL, bytes((NFPROTO_IPV4,)))
