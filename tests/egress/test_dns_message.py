from __future__ import annotations

from ipaddress import IPv4Address

import dns.message
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.egress.dns_message import (
    DnsFormatError,
    Question,
    Rcode,
    RecordType,
    build_answer,
    build_format_error,
    build_query,
    is_under,
    parse_query,
    parse_response,
    truncated_answer,
)

A = RecordType.A


def response_to(query: dns.message.Message, *answers: str) -> bytes:
    """Records as `owner type data`."""
    response = dns.message.make_response(query)
    for index, text in enumerate(answers):
        owner, kind, data = text.split(" ", 2)
        response.answer.append(dns.rrset.from_text(owner, 100 + index, "IN", kind, data))
    return response.to_wire()


def test_a_query_is_understood() -> None:
    wire = dns.message.make_query("WwW.Good.Test.", "AAAA", use_edns=0, payload=4096).to_wire()
    query = parse_query(wire)
    assert query.question.name == "www.good.test"
    assert query.question.type == RecordType.AAAA
    assert (query.udp_size, query.dnssec, query.supported) == (4096, False, True)
    plain = parse_query(dns.message.make_query("good.test", "A", use_edns=False).to_wire())
    assert plain.udp_size is None
    dnssec = parse_query(dns.message.make_query("good.test", "A", want_dnssec=True).to_wire())
    assert dnssec.dnssec


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ([b"good", b"test"], "good.test"),
        ([b"GOOD", b"TEST"], "good.test"),
        ([b"good.test"], None),
        ([b"good", b"test.evil"], None),
        ([b"evil\0", b"good", b"test"], None),
        ([b"\xe2\x84\xaa", b"test"], None),
        ([b"a b", b"test"], None),
        ([b"1", b"2", b"3", b"4"], None),
        ([], None),
        (
            [b"a" * 63] * 3 + [b"b" * 61],
            "a" * 63 + "." + "a" * 63 + "." + "a" * 63 + "." + "b" * 61,
        ),
    ],
)
def test_a_name_with_anything_unusual_in_it_matches_no_policy(
    labels: list[bytes], name: str | None
) -> None:
    key = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    wire = b"\0\1\1\0\0\1" + bytes(6) + key + b"\0\1\0\1"
    assert parse_query(wire).question.name == name


HEADER = b"\0\1\1\0\0\1" + bytes(6)
GOOD = b"\4good\4test\0\0\1\0\1"


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        HEADER,
        HEADER[:11],
        HEADER + GOOD[:-1],
        HEADER + GOOD + b"x",
        b"\0\1\x80\0\0\1" + bytes(6) + GOOD,
        b"\0\1\1\0\0\0" + bytes(6) + GOOD,
        b"\0\1\1\0\0\2" + bytes(6) + GOOD + GOOD,
        b"\0\1\1\0\0\1\0\1" + bytes(4) + GOOD,
        b"\0\1\1\0\0\1\0\0\0\1\0\0" + GOOD,
        b"\0\1\1\0\0\1\0\0\0\0\0\2" + GOOD + bytes(22),
        b"\0\1\1\0\0\1\0\0\0\0\0\1" + GOOD,
        b"\0\1\1\0\0\1\0\0\0\0\0\1" + GOOD + b"\0\0\1" + bytes(8),
        b"\0\1\1\0\0\1\0\0\0\0\0\1" + GOOD + b"\0\0\x29" + bytes(6) + b"\0\5",
        HEADER + b"\xc0\x0c\0\1\0\1",
        HEADER + b"\x40a\0\0\1\0\1",
        HEADER + (b"\x3f" + b"a" * 63) * 4 + b"\0\0\1\0\1",
    ],
)
def test_a_malformed_query_is_refused(wire: bytes) -> None:
    with pytest.raises(DnsFormatError):
        parse_query(wire)


def test_own_answers_are_what_others_understand() -> None:
    asked = dns.message.make_query("Good.test", "A", use_edns=0)
    query = parse_query(asked.to_wire())
    addresses = [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")]
    answer = dns.message.from_wire(build_answer(query, Rcode.NOERROR, addresses, 30))
    assert asked.is_response(answer)
    assert [str(item) for item in answer.answer[0]] == ["192.0.2.1", "192.0.2.2"]
    assert (answer.answer[0].ttl, answer.edns) == (30, 0)
    refused = dns.message.from_wire(build_answer(query, Rcode.REFUSED))
    assert (refused.rcode(), asked.is_response(refused)) == (5, True)
    assert dns.message.from_wire(truncated_answer(query)).flags & 0x0200
    error = build_format_error(asked.to_wire()[:12])
    assert error is not None
    assert dns.message.from_wire(error).rcode() == 1
    assert build_format_error(b"short") is None
    assert build_format_error(build_answer(query, 0)) is None


def test_an_upstream_answer_is_followed_along_its_aliases() -> None:
    question = Question.of("a.test", A)
    asked = dns.message.from_wire(build_query(7, question))
    wire = response_to(
        asked, "a.test. CNAME B.test.", "b.test. CNAME c.test.", "c.test. A 192.0.2.7"
    )
    response = parse_response(wire, 7, question)
    assert response.ttl == 100
    assert response.follow(question.key) == ([IPv4Address("192.0.2.7")], b"\1c\4test\0")
    dangling = parse_response(response_to(asked, "a.test. CNAME b.test."), 7, question)
    assert dangling.follow(question.key) == ([], b"\1b\4test\0")
    loop = parse_response(
        response_to(asked, "a.test. CNAME b.test.", "b.test. CNAME a.test."), 7, question
    )
    assert loop.follow(question.key)[0] == []
    stray = parse_response(response_to(asked, "evil.test. A 192.0.2.9"), 7, question)
    assert stray.follow(question.key)[0] == []


def test_an_answer_is_passed_on_under_the_clients_id_case_and_age() -> None:
    question = Question.of("a.test", A)
    upstream = dns.message.from_wire(build_query(7, question))
    response = parse_response(response_to(upstream, "a.test. A 192.0.2.7"), 7, question)
    asked = dns.message.make_query("A.TeSt", "A", use_edns=False)
    passed = dns.message.from_wire(response.for_client(parse_query(asked.to_wire()), 40))
    assert asked.is_response(passed)
    assert passed.question[0].name.to_text() == "A.TeSt."
    assert (passed.answer[0].ttl, str(passed.answer[0][0])) == (60, "192.0.2.7")
    old = dns.message.from_wire(response.for_client(parse_query(asked.to_wire()), 400))
    assert old.answer[0].ttl == 0


def test_a_time_to_live_with_its_highest_bit_set_is_none_however_old_the_answer_is() -> None:
    question = Question.of("a.test", A)
    query = dns.message.from_wire(build_query(7, question))
    wire = bytearray(response_to(query, "a.test. A 192.0.2.7"))
    wire[-10:-6] = (0x8000_0003).to_bytes(4)
    response = parse_response(bytes(wire), 7, question)
    assert response.ttl == 0
    passed = parse_response(response.for_client(parse_query(query.to_wire()), 5), 7, question)
    assert passed.ttl == 0
    assert passed.wire[-10:-6] == bytes(4)


def test_an_answer_to_another_question_is_refused() -> None:
    question = Question.of("a.test", A)
    asked = dns.message.from_wire(build_query(7, question))
    wire = response_to(asked, "a.test. A 192.0.2.7")
    for id_, other in (
        (8, question),
        (7, Question.of("b.test", A)),
        (7, Question.of("a.test", 28)),
    ):
        with pytest.raises(DnsFormatError):
            parse_response(wire, id_, other)
    for broken in (wire[:-1], wire[:20], b"", build_query(7, question)):
        with pytest.raises(DnsFormatError):
            parse_response(broken, 7, question)


@pytest.mark.parametrize(
    "name",
    [
        b"\xc0\x19",  # itself
        b"\xc0\xff",  # past the end
        b"\xc0\x04",  # the header
        b"\x01",
        b"\xc0",
        b"\x80x",
    ],
)
def test_a_compression_pointer_leads_backwards_or_nowhere(name: bytes) -> None:
    question = Question.of("a.test", A)
    wire = b"\0\7\x81\x80\0\1\0\1\0\0\0\0" + question.wire() + name
    with pytest.raises(DnsFormatError):
        parse_response(wire + b"\0\1\0\1" + bytes(4) + b"\0\4" + bytes(4), 7, question)


def test_a_chain_of_pointers_is_not_followed_for_long() -> None:
    question = Question.of("a.test", A)
    wire = bytearray(b"\0\7\x81\x80\0\1\0\2\0\0\0\0" + question.wire())
    start = len(wire) + 11
    chain = b"\xc0\x0c" + b"".join(
        (0xC000 | (start + 2 * index)).to_bytes(2, "big") for index in range(2000)
    )
    wire += b"\0\0\x10\0\1" + bytes(4) + len(chain).to_bytes(2, "big") + chain
    wire += (
        (0xC000 | (start + 4000)).to_bytes(2, "big") + b"\0\1\0\1" + bytes(4) + b"\0\4" + bytes(4)
    )
    with pytest.raises(DnsFormatError):
        parse_response(bytes(wire), 7, question)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_never_crash_it(data: bytes) -> None:
    question = Question.of("a.test", A)
    for wire in (data, HEADER + data, HEADER + GOOD + data):
        try:
            query = parse_query(wire)
        except DnsFormatError:
            build_format_error(wire)
        else:
            assert query.question.text
            build_answer(query, Rcode.REFUSED)
    for count in (b"\0\1", b"\0\3", b"\xff\xff"):
        wire = b"\0\7\x81\x80\0\1" + count + b"\0\0\0\0" + question.wire() + data
        try:
            parse_response(wire, 7, question).follow(question.key)
        except DnsFormatError:
            continue


def test_a_domain_holds_itself_and_what_is_below() -> None:
    assert is_under("node.test", "node.test")
    assert is_under("a.b.node.test", "node.test")
    assert not is_under("xnode.test", "node.test")
    assert not is_under("test", "node.test")
