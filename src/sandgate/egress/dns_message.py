"""Reads and writes the few DNS messages that the gateway needs. Pure: no I/O. RFC 1035, RFC 6891.

Everything here comes from a sandbox or from a server that a sandbox chose: sizes are bounded, and
compression pointers may only point backwards, so that no message takes more than linear time.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address

from sandgate.policy import normalise_name

HEADER_SIZE = 12
MAX_UDP_PLAIN = 512
"""Largest answer over UDP to a client that sent no EDNS, in bytes."""
MAX_UDP = 1232
"""Largest answer over UDP at all: fits every path unfragmented."""

CLASS_IN = 1
_MAX_CNAMES = 16
_MAX_RECORDS = 1000
_MAX_POINTERS = 32
_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_DO = 0x8000


class RecordType(IntEnum):
    """The types that get special treatment."""

    A = 1
    CNAME = 5
    AAAA = 28
    OPT = 41
    SVCB = 64
    HTTPS = 65
    IXFR = 251
    AXFR = 252


class Rcode(IntEnum):
    """RFC 1035 section 4.1.1."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5


class DnsFormatError(ValueError):
    """Not a DNS message, or not the one that was waited for."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    key: bytes
    """The name in wire form, lower case."""
    type: int
    class_: int = CLASS_IN

    @property
    def name(self) -> str | None:
        """The name as a policy compares it; None if it is no host name."""
        labels = _labels(self.key)
        if any(b"." in label for label in labels):
            return None
        try:
            return normalise_name(b".".join(labels).decode("ascii"))
        except UnicodeDecodeError:
            return None

    @property
    def text(self) -> str:
        """The name for people to read, anything unusual escaped."""
        return b".".join(_labels(self.key)).decode("ascii", "backslashreplace") or "."

    @classmethod
    def of(cls, name: str, type_: int) -> Question:
        """From a normalised name."""
        labels = name.encode("ascii").split(b".")
        key = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        return cls(key.lower(), type_)

    def wire(self) -> bytes:
        """The question section."""
        return self.key + struct.pack("!HH", self.type, self.class_)


@dataclass(frozen=True, slots=True)
class Query:
    """A query as a client sent it."""

    id: int
    flags: int
    question: Question
    question_wire: bytes
    """The question section with the client's own use of upper and lower case."""
    udp_size: int | None
    """Largest answer over UDP that the client takes, in bytes; None if it sent no EDNS."""
    dnssec: bool

    @property
    def supported(self) -> bool:
        """Is it a plain query (opcode 0)?"""
        return not self.flags & _OPCODE


@dataclass(frozen=True, slots=True)
class Record:
    """One A or CNAME record of an answer section. `data` is an address or a name in wire form."""

    owner: bytes
    ttl: int
    data: IPv4Address | bytes


@dataclass(frozen=True, slots=True)
class Response:
    """An answer from upstream."""

    wire: bytes
    rcode: int
    truncated: bool
    ttl: int | None
    """Shortest time to live of all records, in seconds; None if there is none."""
    ttl_offsets: tuple[int, ...]
    question_size: int
    records: tuple[Record, ...] = field(default=())

    def follow(self, key: bytes) -> tuple[list[IPv4Address], bytes]:
        """Follow the CNAME chain from `key`: the addresses found, and the name it ends at."""
        for _ in range(_MAX_CNAMES):
            found = [r.data for r in self.records if r.owner == key]
            addresses = [data for data in found if isinstance(data, IPv4Address)]
            aliases = [data for data in found if isinstance(data, bytes)]
            if addresses or not aliases:
                return addresses, key
            key = aliases[0]
        return [], key

    def for_client(self, query: Query, age: int) -> bytes:
        """The message as an answer to `query`, `age` seconds after it was received."""
        message = bytearray(self.wire)
        message[0:2] = query.id.to_bytes(2, "big")
        # Same name, so same length: compression pointers into it stay right.
        message[HEADER_SIZE : HEADER_SIZE + self.question_size] = query.question_wire
        if age:
            for offset in self.ttl_offsets:
                ttl = _time_to_live(int.from_bytes(message[offset : offset + 4], "big"))
                message[offset : offset + 4] = max(ttl - age, 0).to_bytes(4, "big")
        return bytes(message)


def parse_query(data: bytes) -> Query:
    """Parse what a client sent. Raises :class:`DnsFormatError`."""
    if len(data) < HEADER_SIZE:
        raise DnsFormatError("shorter than a header")
    id_, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if flags & _QR or (questions, answers, authorities) != (1, 0, 0) or additionals > 1:
        raise DnsFormatError("not a query with one question")
    key, end = _plain_name(data, HEADER_SIZE)
    if len(data) < end + 4:
        raise DnsFormatError("question is cut off")
    type_, class_ = struct.unpack_from("!HH", data, end)
    end += 4
    question_wire = data[HEADER_SIZE:end]
    udp_size, dnssec = None, False
    if additionals:
        if len(data) < end + 11 or data[end] != 0:
            raise DnsFormatError("malformed EDNS record")
        kind, size, ttl, length = _RECORD.unpack_from(data, end + 1)
        if kind != RecordType.OPT or len(data) < end + 11 + length:
            raise DnsFormatError("malformed EDNS record")
        end += 11 + length
        udp_size, dnssec = max(size, MAX_UDP_PLAIN), bool(ttl & _DO)
    if end != len(data):
        raise DnsFormatError("bytes follow the message")
    return Query(id_, flags, Question(key, type_, class_), question_wire, udp_size, dnssec)


def build_query(id_: int, question: Question, *, edns: bool = False, dnssec: bool = False) -> bytes:
    """A recursive query for upstream."""
    header = _HEADER.pack(id_, _RD, 1, 0, 0, int(edns))
    return header + question.wire() + (_opt(dnssec) if edns else b"")


def build_answer(
    query: Query, rcode: int, addresses: Sequence[IPv4Address] = (), ttl: int = 0
) -> bytes:
    """An answer of the gateway's own: an error, no data, or A records."""
    edns = query.udp_size is not None
    flags = _QR | _RA | (query.flags & (_RD | _OPCODE)) | rcode
    parts = [_HEADER.pack(query.id, flags, 1, len(addresses), 0, int(edns)), query.question_wire]
    owner = b"\xc0\x0c"  # points at the name in the question
    parts.extend(
        owner + _RECORD.pack(RecordType.A, CLASS_IN, ttl, 4) + address.packed
        for address in addresses
    )
    if edns:
        parts.append(_opt(query.dnssec))
    return b"".join(parts)


def build_format_error(data: bytes) -> bytes | None:
    """FORMERR for something that is no valid query, or None if it deserves no answer."""
    if len(data) < HEADER_SIZE:
        return None
    id_, flags, *_ = _HEADER.unpack_from(data)
    if flags & _QR:
        return None  # answering answers makes loops
    return _HEADER.pack(id_, _QR | _RA | (flags & (_RD | _OPCODE)) | Rcode.FORMERR, 0, 0, 0, 0)


def truncated_answer(query: Query) -> bytes:
    """An empty answer that makes the client ask again over TCP."""
    answer = bytearray(build_answer(query, Rcode.NOERROR))
    answer[2] |= _TC >> 8
    return bytes(answer)


def parse_response(data: bytes, id_: int, question: Question) -> Response:
    """Parse an upstream's answer. Raises :class:`DnsFormatError` unless it answers `question`."""
    if len(data) < HEADER_SIZE:
        raise DnsFormatError("shorter than a header")
    got_id, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if got_id != id_ or not flags & _QR or flags & _OPCODE or questions != 1:
        raise DnsFormatError("not the answer to this query")
    key, offset = _plain_name(data, HEADER_SIZE)
    if key != question.key or data[offset : offset + 4] != question.wire()[len(key) :]:
        raise DnsFormatError("answers another question")
    offset += 4
    question_size = offset - HEADER_SIZE
    records: list[Record] = []
    ttls: list[int] = []
    ttl_offsets: list[int] = []
    truncated = bool(flags & _TC)
    total = 0 if truncated else answers + authorities + additionals
    if total > _MAX_RECORDS:
        raise DnsFormatError(f"more than {_MAX_RECORDS} records")
    for index in range(total):
        owner, offset = _name(data, offset)
        if len(data) < offset + 10:
            raise DnsFormatError("record is cut off")
        kind, class_, ttl, length = _RECORD.unpack_from(data, offset)
        start = offset + 10
        end = start + length
        if len(data) < end:
            raise DnsFormatError("record is cut off")
        if kind != RecordType.OPT:
            ttl = _time_to_live(ttl)
            ttls.append(ttl)
            ttl_offsets.append(offset + 4)
        if index < answers and class_ == CLASS_IN:
            if kind == RecordType.A and length == 4:
                records.append(Record(owner, ttl, IPv4Address(data[start:end])))
            elif kind == RecordType.CNAME:
                target, after = _name(data, start)
                if after != end:
                    raise DnsFormatError("malformed CNAME")
                records.append(Record(owner, ttl, target))
        offset = end
    return Response(
        wire=data,
        rcode=flags & 0xF,
        truncated=truncated,
        ttl=min(ttls, default=None),
        ttl_offsets=tuple(ttl_offsets),
        question_size=question_size,
        records=tuple(records),
    )


def is_under(name: str, domain: str) -> bool:
    """Is `name` the domain itself or a name below it? Both normalised."""
    return name == domain or name.endswith("." + domain)


def _time_to_live(field: int) -> int:
    """In seconds; with the highest bit set it means 0 (RFC 2181 section 8)."""
    return field if field < 1 << 31 else 0


def _opt(dnssec: bool) -> bytes:
    return b"\0" + _RECORD.pack(RecordType.OPT, MAX_UDP, _DO if dnssec else 0, 0)


def _labels(key: bytes) -> list[bytes]:
    labels = []
    offset = 0
    while key[offset]:
        labels.append(key[offset + 1 : offset + 1 + key[offset]])
        offset += 1 + key[offset]
    return labels


def _plain_name(data: bytes, offset: int) -> tuple[bytes, int]:
    """A name without compression, lower case, and where it ends."""
    start = offset
    while offset < len(data):
        length = data[offset]
        if length == 0:
            name = data[start : offset + 1]
            if len(name) > 255:
                break
            return name.lower(), offset + 1
        if length > 63:
            raise DnsFormatError("compressed name in a question")
        offset += 1 + length
    raise DnsFormatError("name is too long or cut off")


def _name(data: bytes, offset: int) -> tuple[bytes, int]:
    """A possibly compressed name, lower case, and where it ends."""
    parts: list[bytes] = []
    size = pointers = 0
    limit = offset
    end: int | None = None
    while offset < len(data):
        length = data[offset]
        if length >= 0xC0:
            if offset + 1 >= len(data):
                break
            target = (length & 0x3F) << 8 | data[offset + 1]
            if end is None:
                end = offset + 2
            pointers += 1
            if not HEADER_SIZE <= target < limit or pointers > _MAX_POINTERS:
                raise DnsFormatError("compression pointer does not point backwards")
            offset = limit = target
            continue
        if length > 63:
            raise DnsFormatError("unknown label type")
        size += 1 + length
        if size > 255 or offset + 1 + length > len(data):
            break
        parts.append(data[offset : offset + 1 + length])
        offset += 1 + length
        if length == 0:
            return b"".join(parts).lower(), end if end is not None else offset
    raise DnsFormatError("name is too long or cut off")
