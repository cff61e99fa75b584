"""Packets made byte by byte, so that they can be wrong in ways no socket would make them."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address

TCP, UDP, ICMP, IPV6_IN_IPV4, GRE, ESP = 6, 17, 1, 41, 47, 50
SYN, RST, ACK = 0x02, 0x04, 0x10
ECHO_REPLY, UNREACHABLE, ECHO, TIMESTAMP = 0, 3, 8, 13
PROHIBITED_CODE = 13

_MORE_FRAGMENTS = 0x2000
_MAGIC = b"sandgate"
_FIRST_TAG, _TAGS = 20000, 40000


def tag(number: int) -> int:
    """Source port and IP identification of a packet, by which answers tell what they are about."""
    return _FIRST_TAG + number % _TAGS


def latest(tagged: int, end: int) -> int | None:
    """The latest number below `end` with this tag."""
    if not _FIRST_TAG <= tagged < _FIRST_TAG + _TAGS or end <= 0:
        return None
    return end - 1 - (end - 1 - (tagged - _FIRST_TAG)) % _TAGS


class Shape(StrEnum):
    """How a packet is put on the wire."""

    WHOLE = "whole"
    OPTIONS = "options"
    """With padding where IP options are."""
    SOURCE_ROUTE = "source_route"
    """With a loose source route to somewhere else."""
    FRAGMENTS = "fragments"
    """In pieces of 8 bytes: the ports are in the first, TCP's flags in the second."""
    REVERSED = "reversed"
    """The same, the last piece first."""
    FIRST_ONLY = "first_only"
    """The first piece, and no other ever."""
    REST_ONLY = "rest_only"
    """All but the first piece."""

    @property
    def has_options(self) -> bool:
        return self in (Shape.OPTIONS, Shape.SOURCE_ROUTE)

    @property
    def complete(self) -> bool:
        return self not in (Shape.FIRST_ONLY, Shape.REST_ONLY)


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet of a sandbox. `port` is TCP's flags' or UDP's destination; ICMP has a type."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    port: int = 0
    flags: int = SYN
    icmp_type: int = ECHO
    shape: Shape = Shape.WHOLE

    def frames(self, number: int, to: bytes, sender: bytes) -> list[bytes]:
        """As Ethernet frames. `number` tells the packet from all others, wherever it shows up."""
        payload = self._payload(number)
        ethernet = to + sender + b"\x08\x00"
        if self.shape in (Shape.WHOLE, Shape.OPTIONS, Shape.SOURCE_ROUTE):
            return [ethernet + self._header(number, len(payload)) + payload]
        pieces = []
        for offset in range(0, len(payload), 8):
            more = _MORE_FRAGMENTS if offset + 8 < len(payload) else 0
            piece = payload[offset : offset + 8]
            pieces.append(ethernet + self._header(number, len(piece), more | offset // 8) + piece)
        if self.shape is Shape.REVERSED:
            pieces.reverse()
        elif self.shape is Shape.FIRST_ONLY:
            del pieces[1:]
        elif self.shape is Shape.REST_ONLY:
            del pieces[0]
        return pieces

    def _header(self, number: int, length: int, fragment: int = 0) -> bytes:
        options = b""
        if self.shape is Shape.OPTIONS:
            options = b"\x01\x01\x01\x01"
        elif self.shape is Shape.SOURCE_ROUTE:
            options = bytes((0x83, 7, 4)) + IPv4Address("1.2.3.4").packed + b"\x01"
        size = 20 + len(options)

        def header(checksum: int) -> bytes:
            return struct.pack(
                ">BBHHHBBH4s4s",
                0x40 | size // 4,
                0,
                size + length,
                tag(number),
                fragment,
                64,
                self.protocol,
                checksum,
                self.source.packed,
                self.destination.packed,
            )

        return header(_checksum(header(0) + options)) + options

    def _payload(self, number: int) -> bytes:
        mark = _MAGIC + struct.pack(">I", number)
        source_port = tag(number)
        if self.protocol == TCP:
            acknowledged = number if self.flags & ACK else 0
            fields = (source_port, self.port, number, acknowledged, 0x50, self.flags, 64240)

            def segment(checksum: int) -> bytes:
                return struct.pack(">HHIIBBHHH", *fields, checksum, 0)

            pseudo = self.source.packed + self.destination.packed + struct.pack(">HH", TCP, 20)
            return segment(_checksum(pseudo + segment(0)))
        if self.protocol == UDP:
            return struct.pack(">HHHH", source_port, self.port, 8 + len(mark), 0) + mark
        if self.protocol == ICMP:
            rest = struct.pack(">HH", source_port, 1) + mark
            if self.icmp_type == UNREACHABLE:  # about a datagram that the sandbox never got
                about = struct.pack(
                    ">BBHHHBBH4s4s",
                    *(0x45, 0, 28, 0, 0, 64, UDP, 0),
                    self.destination.packed,
                    self.source.packed,
                )
                rest = bytes(4) + about + struct.pack(">HHHH", 9, 9, 8, 0) + mark
            checksum = _checksum(struct.pack(">BBH", self.icmp_type, 0, 0) + rest)
            return struct.pack(">BBH", self.icmp_type, 0, checksum) + rest
        if self.protocol == GRE:
            return struct.pack(">HH", 0, 0x6558) + mark
        return mark


@dataclass(frozen=True, slots=True)
class Seen:
    """An IPv4 packet that was seen somewhere."""

    source: IPv4Address
    destination: IPv4Address
    protocol: int
    identification: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Seen | None:
        """From the IP header on; None if it is something else."""
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        size = (data[0] & 15) * 4
        total, identification = struct.unpack_from(">HH", data, 2)
        return cls(
            source=IPv4Address(data[12:16]),
            destination=IPv4Address(data[16:20]),
            protocol=data[9],
            identification=identification,
            payload=data[size:total],
        )

    def number(self) -> int | None:
        """Which packet of a sandbox this is."""
        if self.protocol == TCP and len(self.payload) >= 20:
            return int.from_bytes(self.payload[4:8])
        at = self.payload.find(_MAGIC)
        if at < 0:
            return None
        return int.from_bytes(self.payload[at + len(_MAGIC) :][:4])

    @property
    def flags(self) -> int:
        """Of TCP."""
        return self.payload[13]

    def maximum_segment(self) -> int | None:
        """TCP's option, if it comes first, where Linux puts it."""
        options = self.payload[20 : (self.payload[12] >> 4) * 4]
        return int.from_bytes(options[2:4]) if options[:2] == b"\x02\x04" else None


def _checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
