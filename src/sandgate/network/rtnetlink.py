"""Requests for links, addresses, routes, neighbours and routing rules (linux/rtnetlink.h).

Every function builds one message; a :class:`~sandgate.network.netlink.NetlinkSocket` for
`NETLINK_ROUTE` sends it.
"""

from __future__ import annotations

import struct
import sys
from ipaddress import IPv4Address, IPv4Network

from sandgate.network.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    attribute,
    attributes,
    nested,
    text,
)

NETLINK_ROUTE = 0
LOOPBACK_INDEX = 1
"""Interface index of `lo` in every network namespace."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_DELADDR = 20, 21
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH = 28
_RTM_NEWRULE, _RTM_DELRULE = 32, 33
_RTM_NEWQDISC = 36

_AF_INET, _AF_INET6 = 2, 10
_IFF_UP = 1
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_OPERSTATE, _IFLA_LINKINFO = 1, 3, 16, 18
_IF_OPER_UP = 6
_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS = 29, 8
_IFLA_AF_SPEC, _IFLA_GROUP, _IFLA_NET_NS_FD = 26, 27, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_PERMANENT = 1, 2, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 7, 8, 15
_RTAX_CC_ALGO = 16
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTNH_F_ONLINK = 254, 4, 4
_RTN_UNICAST, _RTN_LOCAL, _RTN_UNREACHABLE = 1, 2, 7
_SCOPE_UNIVERSE, _SCOPE_LINK, _SCOPE_HOST = 0, 253, 254
_NDA_DST, _NDA_LLADDR, _NUD_PERMANENT = 1, 2, 0x80
_FRA_SRC, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 2, 6, 10, 15, 16
_FRA_PROTOCOL, _FR_ACT_TO_TBL = 21, 1

_TC_ROOT, _LINKLAYER_ETHERNET = 0xFFFFFFFF, 1
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_SHAPED_BURST = 65_536
"""Bytes that pass at once at least: the largest segment that a sender hands to a link."""
_SHAPED_BURST_SECONDS, _SHAPED_QUEUE_SECONDS = 0.005, 0.1
_SHAPED_QUEUE = 4 * _SHAPED_BURST

# struct tcmsg: family, interface, handle, parent, info.
_QUEUE = struct.Struct("=BxxxiIII")
# struct tc_ratespec: cell, link layer, overhead, alignment, least packet, bytes a second.
_RATE = struct.Struct("=BBHhHI")

# struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=BBBBBBBBI")

# struct ifinfomsg: family, type, index, flags, which flags to change.
_INTERFACE = struct.Struct("=BxHiII")

_NEW = NLM_F_CREATE | NLM_F_EXCL
_SET = NLM_F_CREATE | NLM_F_REPLACE


def new_veth(
    name: str,
    index: int,
    mac: bytes,
    *,
    group: int,
    peer: str,
    peer_index: int,
    peer_mac: bytes,
    peer_netns: int,
) -> Message:
    """Create a veth pair, both ends down; the peer starts in the namespace `peer_netns` (an fd).

    Choosing the indexes spares looking them up. A link created up reports ENOTCONN; see `link_up`.
    """
    end = (
        _interface(peer_index)
        + attribute(_IFLA_ADDRESS, peer_mac)
        + text(_IFLA_IFNAME, peer)
        + attribute(_IFLA_NET_NS_FD, _u32(peer_netns))
    )
    info = nested(
        _IFLA_LINKINFO,
        attribute(_IFLA_INFO_KIND, b"veth"),
        nested(_IFLA_INFO_DATA, attribute(_VETH_INFO_PEER, end)),
    )
    body = (
        _interface(index)
        + attribute(_IFLA_ADDRESS, mac)
        + text(_IFLA_IFNAME, name)
        + attribute(_IFLA_GROUP, _u32(group))
        + info
    )
    return Message(_RTM_NEWLINK, _NEW, body, f"create veth {name}")


def delete_group(group: int) -> Message:
    """Delete all interfaces of the group at once. ENODEV: it has none."""
    body = _interface(0) + attribute(_IFLA_GROUP, _u32(group))
    return Message(_RTM_DELLINK, 0, body, f"delete interfaces of group {group}")


def delete_link(index: int) -> Message:
    """Delete an interface, and with it its other end."""
    return Message(_RTM_DELLINK, 0, _interface(index), f"delete interface {index}")


def without_link_local(index: int) -> Message:
    """Keep the kernel from giving the interface an IPv6 address of its own when it comes up."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, bytes((_ADDR_GEN_NONE,)))
    body = _interface(index) + nested(_IFLA_AF_SPEC, nested(_AF_INET6, mode))
    return Message(_RTM_SETLINK, 0, body, f"switch off IPv6 addresses of interface {index}")


def link_up(index: int) -> Message:
    """Bring an interface up."""
    return Message(_RTM_SETLINK, 0, _interface(index, _IFF_UP), f"bring up interface {index}")


def get_link(index: int) -> Message:
    """Ask for an interface; see :func:`is_operational`."""
    return Message(_RTM_GETLINK, 0, _interface(index), f"look at interface {index}")


def list_links() -> Message:
    """Ask for all interfaces, by a dump; see :func:`index_and_name`."""
    body = _interface(0) + attribute(_IFLA_EXT_MASK, _u32(_RTEXT_FILTER_SKIP_STATS))
    return Message(_RTM_GETLINK, 0, body, "list interfaces")


def index_and_name(link: bytes) -> tuple[int, str]:
    """Of an interface that :func:`list_links` found."""
    index: int = _INTERFACE.unpack_from(link)[2]
    found = dict(attributes(link[_INTERFACE.size :]))
    return index, found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")


def is_operational(link: bytes) -> bool:
    """Does the answer to :func:`get_link` say that the interface sends what it is given?

    Until a worker of the kernel has noticed that both ends of a veth pair are up, the end that came
    up first discards all packets.
    """
    found = dict(attributes(link[_INTERFACE.size :]))
    return found.get(_IFLA_OPERSTATE) == bytes((_IF_OPER_UP,))


def shape(index: int, megabits: int) -> Message:
    """Let an interface send so many megabits a second: what is more waits, or is discarded."""
    rate = megabits * 125_000
    burst = max(_SHAPED_BURST, int(rate * _SHAPED_BURST_SECONDS))
    queue = max(_SHAPED_QUEUE, int(rate * _SHAPED_QUEUE_SECONDS))
    parameters = (
        _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, min(rate, 0xFFFFFFFF))
        + bytes(_RATE.size)
        + struct.pack("=III", queue, 0, 0)
    )
    body = (
        _QUEUE.pack(0, index, 0, _TC_ROOT, 0)
        + attribute(_TCA_KIND, b"tbf\0")
        + nested(
            _TCA_OPTIONS,
            attribute(_TBF_PARAMETERS, parameters),
            attribute(_TBF_RATE64, struct.pack("=Q", rate)),
            attribute(_TBF_BURST, _u32(burst)),
        )
    )
    return Message(_RTM_NEWQDISC, _NEW, body, f"limit interface {index} to {megabits} Mbit/s")


def add_address(index: int, address: IPv4Address) -> Message:
    """Give an interface the address, as a /32."""
    body = _address(index, address)
    return Message(_RTM_NEWADDR, _SET, body, f"add {address} to interface {index}")


def delete_address(index: int, address: IPv4Address) -> Message:
    """Take the address from an interface."""
    body = _address(index, address)
    return Message(_RTM_DELADDR, 0, body, f"delete {address} from interface {index}")


def add_host_route(index: int, destination: IPv4Address, source: IPv4Address) -> Message:
    """Route `destination` directly out of the interface; connections to it start from `source`.

    They do without pacing, whatever the machine's default is: BBR's timers take a fifth of the
    time of a transfer over a link that is no more than memory. Reno is in every kernel.
    """
    body = (
        _route(32, _RT_TABLE_MAIN, _SCOPE_LINK, _RTN_UNICAST)
        + attribute(_RTA_DST, destination.packed)
        + attribute(_RTA_OIF, _u32(index))
        + attribute(_RTA_PREFSRC, source.packed)
        + nested(_RTA_METRICS, text(_RTAX_CC_ALGO, "reno"))
    )
    return Message(_RTM_NEWROUTE, _NEW, body, f"route {destination} to interface {index}")


def add_default_route(index: int, gateway: IPv4Address) -> Message:
    """Default route by `gateway`, which need not be in any range of the interface."""
    body = (
        _route(0, _RT_TABLE_MAIN, _SCOPE_UNIVERSE, _RTN_UNICAST, _RTNH_F_ONLINK)
        + attribute(_RTA_GATEWAY, gateway.packed)
        + attribute(_RTA_OIF, _u32(index))
    )
    return Message(_RTM_NEWROUTE, _NEW, body, f"default route by {gateway}")


def add_unreachable(network: IPv4Network) -> Message:
    """Destinations that programs of this namespace are told at once are not to be reached."""
    body = _route(network.prefixlen, _RT_TABLE_MAIN, _SCOPE_UNIVERSE, _RTN_UNREACHABLE) + attribute(
        _RTA_DST, network.network_address.packed
    )
    return Message(_RTM_NEWROUTE, _NEW, body, f"no route to {network}")


def add_everything_local(table: int) -> Message:
    """In `table`, deliver every destination to this machine."""
    return Message(_RTM_NEWROUTE, _SET, _local(table), f"local default route in table {table}")


def delete_everything_local(table: int) -> Message:
    """The inverse of :func:`add_everything_local`."""
    body = _local(table)
    return Message(_RTM_DELROUTE, 0, body, f"delete the local default route in table {table}")


def list_routes() -> Message:
    """Ask for the IPv4 routes of all tables, by a dump; see :func:`destination_and_index`."""
    return Message(_RTM_GETROUTE, 0, _ROUTE.pack(_AF_INET, *[0] * 8), "list routes")


def destination_and_index(route: bytes) -> tuple[IPv4Network, int] | None:
    """Of a route that :func:`list_routes` found: where to, and by which interface.

    The index is 0 where there are several. None for a route that leads nowhere or to everybody.
    """
    _, length, *_, kind, _ = _ROUTE.unpack_from(route)
    if kind not in (_RTN_UNICAST, _RTN_LOCAL):
        return None
    found = dict(attributes(route[_ROUTE.size :]))
    network = IPv4Network((found.get(_RTA_DST, bytes(4)), length))
    return network, int.from_bytes(found.get(_RTA_OIF, b""), sys.byteorder)


def add_neighbour(index: int, address: IPv4Address, mac: bytes) -> Message:
    """A permanent neighbour entry: no ARP, and exempt from the neighbour table's global limit."""
    body = (
        struct.pack("=BxxxiHBB", _AF_INET, index, _NUD_PERMANENT, 0, 0)
        + attribute(_NDA_DST, address.packed)
        + attribute(_NDA_LLADDR, mac)
    )
    return Message(_RTM_NEWNEIGH, _SET, body, f"neighbour {address} on interface {index}")


def add_mark_rule(source: IPv4Network, mark: int, table: int, priority: int) -> Message:
    """Packets from `source` that carry `mark` are routed by `table`."""
    body = _mark_rule(source, mark, table, priority)
    return Message(_RTM_NEWRULE, _NEW, body, f"routing rule {priority}")


def delete_mark_rule(source: IPv4Network, mark: int, table: int, priority: int) -> Message:
    """The inverse of :func:`add_mark_rule`."""
    body = _mark_rule(source, mark, table, priority)
    return Message(_RTM_DELRULE, 0, body, f"delete routing rule {priority}")


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _interface(index: int, flags: int = 0) -> bytes:
    return _INTERFACE.pack(0, 0, index, flags, flags)


def _address(index: int, address: IPv4Address) -> bytes:
    return (
        struct.pack("=BBBBI", _AF_INET, 32, _IFA_F_PERMANENT, _SCOPE_UNIVERSE, index)
        + attribute(_IFA_LOCAL, address.packed)
        + attribute(_IFA_ADDRESS, address.packed)
    )


def _route(prefix: int, table: int, scope: int, kind: int, flags: int = 0) -> bytes:
    return _ROUTE.pack(_AF_INET, prefix, 0, 0, table, _RTPROT_STATIC, scope, kind, flags)


def _local(table: int) -> bytes:
    # Table numbers above 255 travel in an attribute; the field in the header is then 0.
    return (
        _route(0, 0, _SCOPE_HOST, _RTN_LOCAL)
        + attribute(_RTA_OIF, _u32(LOOPBACK_INDEX))
        + attribute(_RTA_TABLE, _u32(table))
    )


def _mark_rule(source: IPv4Network, mark: int, table: int, priority: int) -> bytes:
    return (
        struct.pack("=BBBBBxxBI", _AF_INET, 0, source.prefixlen, 0, 0, _FR_ACT_TO_TBL, 0)
        + attribute(_FRA_SRC, source.network_address.packed)
        + attribute(_FRA_PRIORITY, _u32(priority))
        + attribute(_FRA_FWMARK, _u32(mark))
        + attribute(_FRA_FWMASK, _u32(0xFFFFFFFF))
        + attribute(_FRA_TABLE, _u32(table))
        + attribute(_FRA_PROTOCOL, bytes((_RTPROT_STATIC,)))
    )
