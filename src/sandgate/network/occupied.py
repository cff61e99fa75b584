"""What of a range of addresses this machine uses already, apart from the node itself."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network

from sandgate.network import rtnetlink as rt
from sandgate.network.config import INTERFACE_PREFIX
from sandgate.network.netlink import NetlinkSocket

_EVERYWHERE = 8
"""Routes of shorter prefixes mean "all the rest" (VPNs split a default route so)."""


def occupied(wanted: IPv4Network, own: Collection[IPv4Address]) -> list[str]:
    """Routes into `wanted` and addresses in it, each with its interface, widest first.

    Of all routing tables of the calling thread's network namespace, where addresses are routes
    too. Left out is what a node makes: its sandboxes' links, and `own` on `lo`. Raises OSError.
    """
    with closing(NetlinkSocket(rt.NETLINK_ROUTE)) as socket:
        links = dict(map(rt.index_and_name, socket.dump(rt.list_links())))
        routes = set(map(rt.destination_and_index, socket.dump(rt.list_routes())))
    leading = [route for route in routes if route is not None]
    found = []
    for network, index in sorted(leading, key=lambda route: (route[0].prefixlen, route)):
        name = links.get(index, "several interfaces")
        if network.prefixlen < _EVERYWHERE or not network.overlaps(wanted):
            continue
        if re.fullmatch(rf"{INTERFACE_PREFIX}\d+", name):
            continue
        if index == rt.LOOPBACK_INDEX and network.prefixlen == 32 and network[0] in own:
            continue
        found.append(f"{network} by {name}")
    return found
