"""The kernel's log of packets (linux/netfilter/nfnetlink_log.h): listening, and what comes."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.network.netlink import Message, NetlinkSocket, attribute, attributes

_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1
_COMMAND, _MODE, _TIMEOUT, _THRESHOLD, _FLAGS = 1, 2, 4, 5, 6
_BIND, _COPY_PACKET, _NUMBERED = 1, 2, 1
_HEADER, _INTERFACE, _PAYLOAD, _PREFIX, _SEQUENCE = 1, 4, 9, 10, 12
_PATIENCE, _AT_ONCE = 10, 32
"""Packets are handed over so many together, or what came in so many hundredths of a second."""
_IPV4 = 0x0800
_WITH_PORTS = (6, 17)


@dataclass(frozen=True, slots=True)
class LoggedPacket:
    """The head of a packet that a rule logged."""

    prefix: str
    """The rule's."""
    interface: int
    """Index of the one it came in by; 0 for none."""
    sequence: int
    """Counts the packets that were logged, 32 bits wide: a gap is what was lost."""
    destination: IPv4Address | None
    """None for anything but IPv4."""
    protocol: int
    port: int
    """Destination port; 0 where there is none to be seen."""


def listen(socket: NetlinkSocket, group: int, length: int) -> None:
    """Have `socket` receive the first `length` bytes of what is logged to `group`.

    Raises :class:`~sandgate.network.netlink.NetlinkError`, with EBUSY if somebody else does.
    """
    header = struct.pack(">BBH", 0, 0, group)
    settings = (
        (attribute(_COMMAND, bytes((_BIND,))), "listen"),
        (attribute(_MODE, struct.pack(">IBx", length, _COPY_PACKET)), "ask for packets"),
        (attribute(_TIMEOUT, struct.pack(">I", _PATIENCE)), "set the patience"),
        (attribute(_THRESHOLD, struct.pack(">I", _AT_ONCE)), "set the threshold"),
        (attribute(_FLAGS, struct.pack(">H", _NUMBERED)), "ask for numbers"),
    )
    for setting, what in settings:
        socket.execute([Message(_CONFIG, 0, header + setting, f"packet log {group}: {what}")])


def parse(kind: int, payload: bytes) -> LoggedPacket | None:
    """One message; None if it is no packet."""
    if kind != _PACKET:
        return None
    found = dict(attributes(payload[4:]))
    destination, protocol, port = None, 0, 0
    if int.from_bytes(found.get(_HEADER, b"")[:2]) == _IPV4:
        destination, protocol, port = _head(found.get(_PAYLOAD, b""))
    return LoggedPacket(
        prefix=found.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
        interface=int.from_bytes(found.get(_INTERFACE, b"")),
        sequence=int.from_bytes(found.get(_SEQUENCE, b"")),
        destination=destination,
        protocol=protocol,
        port=port,
    )


def _head(packet: bytes) -> tuple[IPv4Address | None, int, int]:
    """Destination, protocol and port of an IPv4 packet of which the beginning is there.

    It comes from a sandbox, and may be anything.
    """
    if len(packet) < 20:
        return None, 0, 0
    protocol, size = packet[9], (packet[0] & 0x0F) * 4
    ports = packet[size : size + 4]
    fragment = int.from_bytes(packet[6:8]) & 0x1FFF
    with_ports = protocol in _WITH_PORTS and size >= 20 and len(ports) == 4 and not fragment
    port = int.from_bytes(ports[2:]) if with_ports else 0
    return IPv4Address(packet[16:20]), protocol, port
