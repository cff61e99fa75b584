"""What a rule asks of a packet: all of its matches must hold. Names follow nft's language. Pure."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from sandgate.network import expressions as e
from sandgate.network.netlink import attribute, nested, text
from sandgate.network.statements import Statement

OFFSETS = {"saddr": 12, "daddr": 16}
"""Of the addresses in an IPv4 header."""

CT_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8}


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
        e.is_ipv4() + e.payload(e.PAYLOAD_NETWORK, OFFSETS[field], 4) + e.lookup(set_name),
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
        + e.payload(e.PAYLOAD_NETWORK, OFFSETS["saddr"], 4)
        + e.payload(e.PAYLOAD_TRANSPORT, 2, 2, e.REGISTER32_1)
        + e.lookup(set_name),
    )


def saddr_daddr_in(set_name: str) -> Statement:
    """IPv4, with its source and destination address together in the named set."""
    return Statement(
        f"ip saddr . ip daddr @{set_name}",
        e.is_ipv4()
        + e.payload(e.PAYLOAD_NETWORK, OFFSETS["saddr"], 4)
        + e.payload(e.PAYLOAD_NETWORK, OFFSETS["daddr"], 4, e.REGISTER32_1)
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


def unknown_interface(set_name: str) -> Statement:
    """The interface is not in the named set."""
    return Statement(
        f"iifname != @{set_name}",
        e.meta(e.META_IIFNAME) + e.lookup(set_name, attribute(5, e.network(e.LOOKUP_INVERTED))),
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
    bucket = f"limit rate over {rate}/second burst {burst} packets counter"
    counted = limit + e.expression("counter")
    return _kept_by_interface("update", e.DYNSET_UPDATE, set_name, bucket, counted)


def above_count_of_interface(set_name: str, count: int) -> Statement:
    """With this one, more than `count` connections from this interface are in the table.

    The set keeps them for each interface; those that have ended do not count. Once it has as many
    interfaces as it can hold, nothing is kept of others, and this never holds for them.
    """
    limit = e.expression(
        "connlimit",
        attribute(1, e.network(count)),
        attribute(2, e.network(e.CONNLIMIT_INVERTED)),
    )
    return _kept_by_interface("add", e.DYNSET_ADD, set_name, f"ct count over {count}", limit)


def _kept_by_interface(
    word: str, operation: int, set_name: str, what: str, expressions: bytes
) -> Statement:
    """What `expressions`, `what` in nft's words, say of the state that a set has by interface."""
    dynset = e.expression(
        "dynset",
        text(1, set_name),
        attribute(3, e.network(operation)),
        attribute(4, e.network(e.REGISTER_1)),
        attribute(9, e.network(e.DYNSET_HAS_EXPRESSIONS)),
        nested(10, expressions),
    )
    return Statement(f"{word} @{set_name} {{ iifname {what} }}", e.meta(e.META_IIFNAME) + dynset)


def _interface(word: str, key: int, name: str, operator: int) -> Statement:
    # A shorter value compares the beginning only, which is what a name ending in `*` means.
    value = name[:-1].encode() if name.endswith("*") else name.encode().ljust(16, b"\0")
    sign = "!= " if operator == e.NOT_EQUAL else ""
    return Statement(f'{word} {sign}"{name}"', e.meta(key) + e.compare(operator, value))


def _address(field: str, network: IPv4Network | IPv4Address) -> Statement:
    expressions = e.is_ipv4() + e.payload(e.PAYLOAD_NETWORK, OFFSETS[field], 4)
    if isinstance(network, IPv4Network):
        if network.prefixlen < 32:
            expressions += e.masked(network.netmask.packed)
        value = network.network_address.packed
    else:
        value = network.packed
    return Statement(f"ip {field} {network}", expressions + e.compare(e.EQUAL, value))


def _source_nat() -> bytes:
    return e.ct(e.CT_STATUS) + e.masked(e.host(e.IPS_SRC_NAT))
