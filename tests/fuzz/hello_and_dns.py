"""Targets for what the gateway reads of TLS and DNS, held against OpenSSL and dnspython."""

from __future__ import annotations

import ssl
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

import dns.exception
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype

from egress import hello
from fuzz.pieces import pieces
from sandgate.egress.client_hello import ClientHelloParser
from sandgate.egress.dns_message import (
    DnsFormatError,
    Query,
    Question,
    Rcode,
    RecordType,
    build_answer,
    build_format_error,
    build_query,
    parse_query,
    parse_response,
    truncated_answer,
)
from sandgate.egress.no_name import NoName
from sandgate.policy import normalise_name

QUESTION = Question.of("good.test", RecordType.A)
"""What responses answer."""
QUERY = parse_query(build_query(1, QUESTION, edns=True))

_NOT_CALLED = object()


def client_hello(data: bytes) -> None:
    """A name is the one that a server would see, however the hello is cut."""
    whole = _hello(iter([data]))
    for size in (1, 6) if len(data) < 2000 else (97,):
        assert _hello(pieces(data, size)) == whole
    sound = hello.hello(hello.extension(77, data), hello.server_names(b"good.test"), size=1 << 12)
    assert _hello(iter([sound])) == "good.test"
    if whole is None:
        return
    assert _hello(iter([data + b"\x17\x03\x03\0\1x"])) == whole
    if isinstance(whole, str):
        assert normalise_name(whole) == whole
        theirs = _name_by_openssl(data)
        assert theirs is _NOT_CALLED or (
            isinstance(theirs, str) and normalise_name(theirs) == whole
        )


def dns_query(data: bytes) -> None:
    """A query means the same to others, and our answers to it are ones that they understand."""
    error = build_format_error(data)
    assert error is None or int(dns.message.from_wire(error).rcode()) == Rcode.FORMERR
    try:
        query = parse_query(data)
    except DnsFormatError:
        return
    name = query.question.name
    if name is not None:
        assert normalise_name(name) == name
        assert Question.of(name, query.question.type).key == query.question.key
    assert parse_query(build_query(query.id, query.question)).question == query.question
    assert isinstance(query.question.text, str)
    try:
        theirs = dns.message.from_wire(data)
    except dns.exception.DNSException:
        pass
    else:
        if theirs.question:
            asked = theirs.question[0]
            assert asked.name.canonicalize().to_wire() == query.question.key
            assert (asked.rdtype, asked.rdclass) == (query.question.type, query.question.class_)
        assert theirs.id == query.id
    if query.supported:
        addresses = [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")]
        _require_understood(query, build_answer(query, Rcode.NOERROR, addresses, 30))
        _require_understood(query, build_answer(query, Rcode.REFUSED))
        _require_understood(query, truncated_answer(query))


def dns_response(data: bytes) -> None:
    """The addresses of an answer are those that others find, and it can be passed on."""
    header = struct.pack("!HHH", 7, 0x8180, 1)
    data = header + data[:6].ljust(6, b"\0") + QUESTION.wire() + data[6:]
    try:
        response = parse_response(data, 7, QUESTION)
    except DnsFormatError:
        return
    addresses, end = response.follow(QUESTION.key)
    assert end == QUESTION.key or any(record.data == end for record in response.records)
    assert set(addresses) <= {record.data for record in response.records}
    passed = response.for_client(QUERY, 0)
    assert parse_response(passed, QUERY.id, QUESTION).records == response.records
    aged, rest = bytearray(response.for_client(QUERY, 5)), bytearray(passed)
    for offset in response.ttl_offsets:
        ttl = int.from_bytes(rest[offset : offset + 4])
        left = max(ttl - 5, 0) if ttl < 1 << 31 else 0
        assert aged[offset : offset + 4] == left.to_bytes(4)
        aged[offset : offset + 4] = rest[offset : offset + 4]
    assert aged == rest
    try:
        theirs = dns.message.from_wire(data, one_rr_per_rrset=True, ignore_trailing=True)
    except dns.exception.DNSException:
        return
    found = []
    for rrset in theirs.answer:
        if rrset.rdclass != dns.rdataclass.IN:
            continue
        owner = rrset.name.canonicalize().to_wire()
        for item in rrset:
            if rrset.rdtype == dns.rdatatype.A:
                found.append((owner, IPv4Address(item.address)))
            elif rrset.rdtype == dns.rdatatype.CNAME:
                found.append((owner, item.target.canonicalize().to_wire()))
    if not response.truncated:
        assert found == [(record.owner, record.data) for record in response.records]


def _hello(parts: Iterator[bytes]) -> str | NoName | None:
    parser = ClientHelloParser()
    for part in parts:
        result = parser.feed(part)
        if result is not None:
            return result
    return None


def _name_by_openssl(data: bytes) -> object:
    """The server name that OpenSSL sees; _NOT_CALLED if it sees no sound ClientHello."""
    seen: list[object] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _, name, __: seen.append(name)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(data)
    try:
        context.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    except (ssl.SSLError, UnicodeError):
        pass
    return seen[0] if seen else _NOT_CALLED


def _require_understood(query: Query, answer: bytes) -> None:
    parsed = dns.message.from_wire(answer)
    assert parsed.id == query.id
    assert parsed.question[0].name.canonicalize().to_wire() == query.question.key
