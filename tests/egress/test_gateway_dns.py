"""The gateway's resolver: allowed names and nothing else."""

from __future__ import annotations

import socket

import pytest

from egress.far_side import (
    ATTACKER,
    GOOD,
    INGRESS,
)
from egress.hello import genuine
from egress.lab import SECOND, Lab
from egress.talk import assert_refused
from sandgate.policy import parse_policy


@pytest.mark.parametrize("tcp", [False, True])
def test_only_allowed_names_are_answered_and_only_their_addresses(lab: Lab, tcp: bool) -> None:
    lab.allow("good.test", "*.good.test", "alias.test")
    assert GOOD in lab.ask("Good.Test", tcp=tcp).to_text()
    assert GOOD in lab.ask("www.good.test", tcp=tcp).to_text()
    chain = lab.ask("alias.test", tcp=tcp).to_text()
    assert "CNAME" in chain
    assert GOOD in chain
    for kind in ("AAAA", "HTTPS", "SVCB"):
        answer = lab.ask("good.test", kind, tcp=tcp)
        assert (answer.rcode(), len(answer.answer)) == (0, 0)
    asked = len(lab.side.queries)
    for name, kind in (
        ("evil.test", "A"),
        ("payload.evil.test", "A"),
        ("hop.test", "A"),
        ("evil.test", "AAAA"),
        ("good.test", "TXT"),
        ("good.test", "NULL"),
        ("good.test", "ANY"),
        ("a b.good.test".replace(" ", "\\032"), "A"),
    ):
        assert lab.ask(name, kind, tcp=tcp).rcode() == 5, (name, kind)
    assert len(lab.side.queries) == asked
    assert {kind for _, kind in lab.side.queries} <= {"A"}
    assert lab.wait_decision(protocol="dns", name="evil.test")["reason"] == "name_not_allowed"


@pytest.mark.parametrize("tcp", [False, True])
def test_with_the_resolver_listed_everything_is_answered(lab: Lab, tcp: bool) -> None:
    lab.allow("good.test", "8.8.8.8")
    assert ATTACKER in lab.ask("evil.test", tcp=tcp).to_text()
    assert "text" in lab.ask("evil.test", "TXT", tcp=tcp).to_text()
    assert lab.ask("no.such.test", tcp=tcp).rcode() == 3
    assert not lab.ask("evil.test", "AAAA", tcp=tcp).answer


def test_without_names_nothing_is_answered_but_a_refusal(lab: Lab) -> None:
    lab.set_policy(parse_policy([GOOD], ["0.0.0.0/0"]))
    assert lab.ask("good.test").rcode() == 5
    assert lab.ask("good.test", source=SECOND).rcode() == 5  # unknown to the gateway
    assert_refused(lab, "8.8.8.8", 53, source=SECOND)
    assert not lab.side.queries


def test_an_answer_too_long_for_udp_comes_over_tcp(lab: Lab) -> None:
    lab.allow("big.test")
    assert lab.ask("big.test").flags & 0x0200  # truncated
    assert len(lab.ask("big.test", tcp=True).answer[0]) == 100


def test_names_of_the_node_are_answered_with_its_ingress_if_the_policy_admits_them(
    lab: Lab,
) -> None:
    name = "3000-abc.sandgate.localhost"
    lab.allow("*.sandgate.localhost")
    assert INGRESS in lab.ask(name).to_text()
    lab.allow("good.test")
    assert lab.ask(name).rcode() == 5
    lab.set_policy(parse_policy([], []))
    assert INGRESS in lab.ask(name).to_text()
    assert not lab.side.queries


def test_a_dns_answer_is_kept_for_the_dial_that_follows(lab: Lab) -> None:
    lab.allow("first.test")
    lab.ask("first.test")
    with lab.connect(ATTACKER, 443) as sock:
        sock.sendall(genuine("first.test"))
        assert sock.recv(100) == b"220 hello\r\n"
    assert lab.side.queries.count(("first.test", "A")) <= 1


def test_garbage_over_dns_gets_a_format_error_or_silence(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.open(socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(b"\x12\x34\x01\x00\x00\x02" + bytes(6), ("8.8.8.8", 53))
        assert sock.recv(512)[:4] == b"\x12\x34\x81\x81"
        sock.settimeout(0.2)
        for data in (b"", b"x", b"\x12\x34\x80\x00\x00\x01" + bytes(6)):
            sock.sendto(data, ("8.8.8.8", 53))
            with pytest.raises(TimeoutError):
                sock.recv(512)
