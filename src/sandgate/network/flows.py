"""What connection tracking announces: flows that begin, and flows that it forgets.

Formats: linux/netfilter/nfnetlink_conntrack.h. Parsing is pure; what the kernel sends is trusted,
but for numbers that a newer kernel may leave out.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sandgate.network import sysctl
from sandgate.network.netlink import attributes

GROUP_NEW, GROUP_DESTROY = 1, 3
"""Multicast groups of NETLINK_NETFILTER."""

ACCOUNTING = ("net.netfilter.nf_conntrack_acct", "net.netfilter.nf_conntrack_timestamp")
"""Settings without which flows have neither bytes nor times; for flows that begin later."""

_NEW, _DELETE = 1 << 8, 1 << 8 | 2
_TUPLE, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _SENT, _RECEIVED = 1, 2, 3, 4, 7, 9, 10
_ID, _TIMESTAMP = 12, 20
_IP, _PROTO = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _DESTINATION_PORT = 1, 3
_BYTES = 2
_START, _STOP = 1, 2
_TCP_INFO, _TCP_STATE = 1, 1
_SOURCE_TRANSLATED, _ASSURED = 1 << 4, 1 << 2

_ICMP, _TCP, _UDP = 1, 6, 17
_TCP_STATES = (
    "",
    "syn_sent",
    "syn_recv",
    "established",
    "fin_wait",
    "close_wait",
    "last_ack",
    "time_wait",
    "close",
    "syn_sent",
)

# Classic BPF (linux/filter.h), and the kernel's extensions that find attributes in it.
_LOAD, _LOAD_WORD, _LOAD_AT_X, _INTO_X, _FROM_A = 0x00, 0x20, 0x40, 0x01, 0x07
_AND, _IF_EQUAL, _RETURN = 0x54, 0x15, 0x06
_FIND, _FIND_WITHIN = 0xFFFFF000 + 12, 0xFFFFF000 + 16
_MATCH, _NO_MATCH = 1, 2
"""Where a jump leads to; 0 for none."""
_FIRST_ATTRIBUTE = 20
"""Offset in a message: after the headers of netlink and nfnetlink."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What is announced of one flow. Bytes count whole IPv4 packets."""

    begins: bool
    """Else it is forgotten."""
    id: int
    """Kept by the kernel for as long as it knows the flow; used again later."""
    source: IPv4Address
    destination: IPv4Address
    protocol: int
    port: int
    """Destination port; 0 where the protocol has none."""
    translated: bool
    """Does it leave with another source address? Only what is forwarded does."""
    sent: int = 0
    received: int = 0
    milliseconds: int = 0
    """From its first packet to its last one."""


def parse(kind: int, payload: bytes, timeouts: Mapping[str, int]) -> Flow | None:
    """One message; None if it announces nothing of the kind. See :func:`read_timeouts`."""
    if kind not in (_NEW, _DELETE):
        return None
    found = dict(attributes(payload[4:]))
    address, protocol = (dict(attributes(part)) for part in _parts(found.get(_TUPLE, b"")))
    if _SOURCE not in address or _NUMBER not in protocol:
        return None  # IPv6
    number = protocol[_NUMBER][0]
    status = int.from_bytes(found.get(_STATUS, b""))
    return Flow(
        begins=kind == _NEW,
        id=int.from_bytes(found.get(_ID, b"")),
        source=IPv4Address(address[_SOURCE]),
        destination=IPv4Address(address[_DESTINATION]),
        protocol=number,
        port=int.from_bytes(protocol.get(_DESTINATION_PORT, b"")),
        translated=bool(status & _SOURCE_TRANSLATED),
        sent=_count(found.get(_SENT, b"")),
        received=_count(found.get(_RECEIVED, b"")),
        milliseconds=_duration(found, number, status, timeouts),
    )


def read_timeouts() -> dict[str, int]:
    """For how many seconds without a packet the kernel remembers a flow, by kind and TCP state.

    Of the network namespace that the calling thread is in. Raises OSError.
    """
    names = {
        **{state: f"tcp_timeout_{state}" for state in _TCP_STATES if state},
        "udp": "udp_timeout",
        "udp_stream": "udp_timeout_stream",
        "icmp": "icmp_timeout",
    }
    settings = {kind: f"net.netfilter.nf_conntrack_{name}" for kind, name in names.items()}
    return {kind: int(sysctl.read(name)) for kind, name in settings.items() if sysctl.exists(name)}


def from_range(sources: IPv4Network) -> bytes:
    """A program for the kernel that lets through what is announced of flows from `sources`."""
    search: list[tuple[int, int, int]] = [(_LOAD, 0, _FIRST_ATTRIBUTE)]
    for kind, how in ((_TUPLE, _FIND), (_IP, _FIND_WITHIN), (_SOURCE, _FIND_WITHIN)):
        search += [(_INTO_X, 0, kind), (_LOAD_WORD, 0, how), (_IF_EQUAL, _NO_MATCH, 0)]
    program = [
        *search,
        (_FROM_A, 0, 0),
        (_LOAD_AT_X, 0, 4),
        (_AND, 0, int(sources.netmask)),
        (_IF_EQUAL, _MATCH, int(sources.network_address)),
        (_RETURN, 0, 0),
        (_RETURN, 0, 0xFFFFFFFF),
    ]
    last = len(program) - 1
    where = {0: 0, _MATCH: last, _NO_MATCH: last - 1}
    return b"".join(
        struct.pack("=HBBI", code, max(0, where[to] - index - 1), 0, value)
        for index, (code, to, value) in enumerate(program)
    )


def _parts(data: bytes) -> tuple[bytes, bytes]:
    found = dict(attributes(data))
    return found.get(_IP, b""), found.get(_PROTO, b"")


def _count(data: bytes) -> int:
    return int.from_bytes(dict(attributes(data)).get(_BYTES, b""))


def _duration(
    found: Mapping[int, bytes], protocol: int, status: int, timeouts: Mapping[str, int]
) -> int:
    """The kernel forgets a flow some time after its last packet; that time is taken off."""
    times = dict(attributes(found.get(_TIMESTAMP, b"")))
    if _START not in times or _STOP not in times:
        return 0
    lasted = int.from_bytes(times[_STOP]) - int.from_bytes(times[_START])
    if protocol == _TCP:
        info = dict(attributes(dict(attributes(found.get(_PROTOINFO, b""))).get(_TCP_INFO, b"")))
        state = info.get(_TCP_STATE, b"\0")[0]
        kind = _TCP_STATES[state] if state < len(_TCP_STATES) else ""
    elif protocol == _UDP:
        kind = "udp_stream" if status & _ASSURED else "udp"
    else:
        kind = "icmp" if protocol == _ICMP else ""
    left = int.from_bytes(found.get(_TIMEOUT, b""))
    # What is left of the time is rounded down: a millisecond after a packet a second is missing.
    idle = max(0, timeouts.get(kind, 0) - left - (left > 0))
    return max(0, lasted // 1_000_000 - idle * 1000)
