"""Ends connections of a sandbox that its new policy does not let pass, at both of their ends.

The rules refuse the next packet of such a connection anyway; one that is idle would not be told.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv4Address

from sandgate.network import sockdiag
from sandgate.network.config import HOST_ADDRESS
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket

_FAMILIES = (socket.AF_INET, socket.AF_INET6)
"""A socket of either family may have an IPv4 connection."""


def cut_denied(
    namespace: int,
    own: IPv4Address,
    host: NetlinkSocket,
    admits: Callable[[IPv4Address], bool],
) -> int:
    """Reset the TCP connections of a sandbox to addresses that are not admitted.

    `namespace` is a descriptor of its network namespace or the pidfd of a process in it, `own` its
    address there, `host` a sock_diag socket of the host's namespace: what the gateway has is the
    gateway's to judge. Called while the old rules still hold, the far end is told as well. Returns
    how many there were. Raises OSError.
    """
    with inside(namespace):
        diag = NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)
    with diag:
        denied = [
            found
            for family in _FAMILIES
            for found in sockdiag.connections(diag, family)
            if found.source == own
            and found.destination != HOST_ADDRESS
            and not admits(found.destination)
            # Not one that ends at a transparent socket of the gateway.
            and not sockdiag.exists(host, found.reversed())
        ]
        for found in denied:
            sockdiag.destroy(diag, found)
    return len(denied)
