"""Connection tracking: its table's size, and forgetting what is in it
(linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import struct

from sandgate.network import sysctl
from sandgate.network.netlink import Message, NetlinkSocket, attribute

_CONNTRACK_DELETE = 1 << 8 | 2
_CTA_MARK, _CTA_MARK_MASK = 8, 21
_MAX = "net.netfilter.nf_conntrack_max"
_LEAST = 65_536
"""Where the kernel does not tell, since nothing has been tracked yet; it has no less by itself
on machines of 1 GB and more."""


def table_size() -> int:
    """How many connections the kernel tracks at once. Raises OSError."""
    # 0 is "any number".
    return int(sysctl.read(_MAX)) or 1 << 32 if sysctl.exists(_MAX) else _LEAST


def forget(socket: NetlinkSocket, mark: int) -> None:
    """Delete all connections that carry `mark`, in this network namespace.

    The kernel picks them out itself: it walks its table once, and nothing is copied.
    """
    body = (
        struct.pack(">BBH", 0, 0, 0)
        + attribute(_CTA_MARK, struct.pack(">I", mark))
        + attribute(_CTA_MARK_MASK, struct.pack(">I", 0xFFFFFFFF))
    )
    socket.execute([Message(_CONNTRACK_DELETE, 0, body, f"forget connections marked {mark:#x}")])
