"""Names on other ports than the web's: pins, what is dialled, and TLS that must match."""

from __future__ import annotations

import socket
import time

import pytest

from egress.far_side import ATTACKER, GOOD, INGRESS, LISTED, OTHER, SERVER_FIRST
from egress.hello import genuine, hello
from egress.lab import Lab
from egress.talk import assert_refused, assert_reset, get, response
from sandgate.policy import Mode


def test_an_address_that_was_answered_for_the_name_is_reached_at_once(lab: Lab) -> None:
    lab.allow("first.test:22")
    assert SERVER_FIRST in lab.ask("first.test").to_text()
    with lab.connect(SERVER_FIRST, 22) as sock:
        assert sock.recv(100) == b"220 hello\r\n"  # before the client says anything
        sock.sendall(b"ehlo\r\n")
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"bye 6\r\n"
        assert sock.recv(100) == b""
    found = lab.wait_decision(port=22, verdict="allow")
    assert (found["name"], found["rule"]) == ("first.test", "first.test:22")
    assert found["reason"] == "allowed_name"


def test_another_address_is_refused_at_once_with_the_reason(lab: Lab) -> None:
    lab.allow("first.test:22", "good.test:81")
    for name in ("first.test", "good.test"):
        lab.ask(name)
    assert_refused(lab, ATTACKER, 22)
    assert_refused(lab, GOOD, 22)  # was answered, but for another port's name
    assert_refused(lab, SERVER_FIRST, 81)
    assert not lab.side.contacts
    found = lab.wait_decision(destination=ATTACKER)
    assert (found["reason"], found["detail"]) == ("denied_address", "not_pinned")


def test_without_a_question_there_is_no_pin(lab: Lab) -> None:
    lab.allow("first.test:22")
    assert_refused(lab, SERVER_FIRST, 22)
    lab.ask("first.test", "AAAA")
    assert_refused(lab, SERVER_FIRST, 22)


def test_an_allowed_address_passes_without_a_pin(lab: Lab) -> None:
    lab.allow("good.test:22", SERVER_FIRST)
    with lab.connect(SERVER_FIRST, 22) as sock:
        assert sock.recv(100) == b"220 hello\r\n"
    assert lab.wait_decision(port=22)["reason"] == "allowed_address"


def test_aliases_and_wildcards_are_pinned(lab: Lab) -> None:
    lab.allow("*.good.test:81", "alias.test:81")
    lab.ask("www.good.test")
    with lab.connect(GOOD, 81) as sock:
        sock.sendall(get("anything"))
        assert response(sock) == f"{GOOD} / 0"
    assert lab.wait_decision(port=81)["rule"] == "*.good.test:81"
    lab.allow("alias.test:81", sandbox_id="another")
    assert_refused(lab, GOOD, 81)
    lab.ask("alias.test")
    with lab.connect(GOOD, 81) as sock:
        sock.sendall(get("anything"))
        assert response(sock) == f"{GOOD} / 0"


@pytest.mark.parametrize("name", ["private.test", "metadata.test", "own.test"])
def test_a_name_that_leads_inward_is_refused_when_dialled(lab: Lab, name: str) -> None:
    lab.allow(f"{name}:81")
    address = lab.ask(name).answer[0].to_text().split()[-1]
    assert_refused(lab, address, 81)
    assert lab.wait_decision(port=81)["reason"] == "always_denied"


def test_a_name_with_port_443_or_80_alone_opens_that_port_only(lab: Lab) -> None:
    lab.allow("good.test:443")
    with lab.tls(ATTACKER, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test"))
        assert_reset(sock)
    lab.allow("good.test:80")
    with lab.connect(ATTACKER, 80) as sock:
        sock.sendall(get("good.test"))
        assert response(sock) == f"{GOOD} / 0"
    with lab.connect(GOOD, 443) as sock:
        sock.sendall(genuine("good.test"))
        assert_reset(sock)
    assert not lab.side.contacts[ATTACKER, 443]


def test_a_server_that_speaks_first_on_port_443_can_be_allowed_by_name_and_port(lab: Lab) -> None:
    lab.allow("first.test:443")
    lab.ask("first.test")
    with lab.connect(SERVER_FIRST, 443) as sock:
        assert sock.recv(100) == b"220 hello\r\n"


# TLS on such a port


def test_tls_goes_by_its_server_name_too(lab: Lab) -> None:
    lab.allow("good.test:444", "*.good.test:444", "evil.test")
    lab.ask("good.test")
    for name in ("good.test", "www.good.test"):
        with lab.tls(GOOD, name, 444) as tls:
            assert tls.recv(100) == GOOD.encode()
            tls.sendall(b"more")
            assert tls.recv(100) == b"more"


@pytest.mark.parametrize(
    "first",
    [
        genuine("other.test"),
        genuine("evil.test"),  # allowed, but not on this port
        hello(),
        genuine("good.test")[:5] + b"\x02" + genuine("good.test")[6:],
    ],
    ids=["other", "other port", "no name", "malformed"],
)
@pytest.mark.parametrize("split", [False, True])
def test_tls_with_another_name_or_none_is_reset_and_never_arrives(
    lab: Lab, first: bytes, split: bool
) -> None:
    lab.allow("first.test:22", "evil.test:81")
    lab.ask("first.test")
    with lab.connect(SERVER_FIRST, 22) as sock:
        try:
            if split:
                for byte in first[:40]:
                    sock.sendall(bytes([byte]))
            sock.sendall(first[40:] if split else first)
        except ConnectionResetError:
            pass  # as soon as it was clear
        else:
            assert_reset(sock)
    found = lab.wait_decision(port=22)
    assert (found["verdict"], found["bytesSent"]) == ("deny", 0)


def test_a_client_hello_that_does_not_end_is_reset_in_time_and_silence_is_not(lab: Lab) -> None:
    lab.allow("first.test:22")
    lab.ask("first.test")
    with lab.connect(SERVER_FIRST, 22) as slow, lab.connect(SERVER_FIRST, 22) as silent:
        assert slow.recv(100) == silent.recv(100) == b"220 hello\r\n"
        slow.sendall(genuine("first.test")[:20])
        assert_reset(slow, within=8)
        silent.sendall(b"still here")
        silent.shutdown(socket.SHUT_WR)
        assert silent.recv(100) == b"bye 10\r\n"


def test_bytes_that_cannot_be_tls_pass_at_once(lab: Lab) -> None:
    lab.allow("first.test:22")
    lab.ask("first.test")
    for first in (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", b"\x16\x05\x01", b"SSH-2.0-x\r\n"):
        with lab.connect(SERVER_FIRST, 22) as sock:
            assert sock.recv(100) == b"220 hello\r\n"
            sock.sendall(first)
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b"bye %d\r\n" % len(first)


def test_many_bytes_before_the_connection_stands_all_arrive(lab: Lab) -> None:
    lab.allow("first.test:22")
    lab.ask("first.test")
    with lab.connect(SERVER_FIRST, 22) as sock:
        sock.sendall(b"x" * 3_000_000)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(100):
            received += data
        assert received == b"220 hello\r\nbye 3000000\r\n"


# Changes of the policy


def test_a_live_connection_keeps_its_pin_and_ends_with_its_entry(lab: Lab) -> None:
    lab.allow("first.test:22", "good.test")
    lab.ask("first.test")
    with lab.connect(SERVER_FIRST, 22) as sock:
        assert sock.recv(100) == b"220 hello\r\n"
        lab.allow("*.test:22")
        time.sleep(0.05)
        sock.sendall(b"x")
        lab.allow("first.test:81", "first.test")
        assert_reset(sock)
    assert lab.wait_decision(port=22, verdict="deny")["reason"] == "policy_changed"


def test_tls_on_a_port_needs_both_the_pin_and_the_name_after_a_change(lab: Lab) -> None:
    for left in ("good.test:444", "www.good.test:444"):
        lab.allow("good.test:444", "www.good.test:444", sandbox_id=left.replace(":", "-")[:3])
        lab.ask("good.test")
        with lab.tls(GOOD, "www.good.test", 444) as tls:
            assert tls.recv(100) == GOOD.encode()
            lab.allow(left, sandbox_id=left.replace(":", "-")[:3])
            assert_reset(tls)


# DNS servers of the policy


@pytest.mark.parametrize("tcp", [False, True])
def test_listed_servers_answer_allowed_names_and_are_asked_themselves(lab: Lab, tcp: bool) -> None:
    lab.allow("listed.test", "good.test", dns_servers=[LISTED])
    assert OTHER in lab.ask("listed.test", tcp=tcp, server=LISTED).to_text()
    assert GOOD in lab.ask("good.test", tcp=tcp, server=LISTED).to_text()
    assert lab.ask("evil.test", tcp=tcp, server=LISTED).rcode() == 5
    assert lab.ask("good.test", "TXT", tcp=tcp, server=LISTED).rcode() == 5
    assert lab.ask("good.test", tcp=tcp).rcode() == 5
    # The gateway, too, asks it where a name leads.
    with lab.tls(ATTACKER, "listed.test") as tls:
        assert tls.recv(100) == OTHER.encode()


def test_a_listed_server_tells_other_sandboxes_nothing(lab: Lab) -> None:
    lab.allow("listed.test", dns_servers=[LISTED])
    assert OTHER in lab.ask("listed.test", server=LISTED).to_text()
    lab.allow("listed.test")
    assert lab.ask("listed.test").rcode() == 3


@pytest.mark.parametrize("servers", [[], [INGRESS], ["127.0.0.1"]])
def test_without_a_server_that_can_be_asked_there_is_no_dns(lab: Lab, servers: list[str]) -> None:
    lab.allow("good.test", dns_servers=servers)
    assert lab.ask("good.test").rcode() == 5
    assert not lab.side.queries
    if servers:  # the kernel refuses it before; the gateway would not ask it
        with lab.connect(GOOD, 443) as sock:
            sock.sendall(genuine("good.test"))
            assert_reset(sock)
    else:  # names are still dialled, by what the node's resolvers say
        with lab.tls(ATTACKER, "good.test") as tls:
            assert tls.recv(100) == GOOD.encode()


# Reporting


def test_reporting_lets_pass_and_says_what_would_have_been_refused(lab: Lab) -> None:
    lab.allow("good.test", "good.test:81", mode=Mode.REPORT)
    assert ATTACKER in lab.ask("evil.test").to_text()
    assert "text" in lab.ask("good.test", "TXT").to_text()
    with lab.tls(ATTACKER, "evil.test") as tls:
        assert tls.recv(100) == ATTACKER.encode()
    with lab.tls(ATTACKER, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
    for address, port in ((OTHER, 80), (ATTACKER, 81)):
        with lab.connect(address, port) as sock:
            sock.sendall(get("evil.test"))
            assert response(sock) == f"{address} / 0"
    for having, reason in (
        ({"protocol": "dns", "name": "evil.test"}, "name_not_allowed"),
        ({"protocol": "dns", "name": "good.test"}, "record_type"),
        ({"protocol": "tls", "name": "evil.test"}, "denied_address"),
        ({"protocol": "http", "name": "evil.test"}, "denied_address"),
        ({"port": 81}, "denied_address"),
    ):
        found = lab.wait_decision(**having)
        assert (found["verdict"], found["reason"]) == ("allow", reason), having
        assert found["reported"] is True
    assert "reported" not in lab.wait_decision(protocol="tls", name="good.test")


def test_reporting_does_not_open_what_is_always_denied(lab: Lab) -> None:
    lab.allow("good.test", mode=Mode.REPORT)
    with lab.connect("10.1.2.3", 80) as sock:
        sock.sendall(get("private.test"))
        assert_reset(sock)
    assert lab.wait_decision(protocol="http", verdict="deny")["reason"] == "always_denied"


def test_connections_that_were_only_reported_end_when_the_policy_is_enforced(lab: Lab) -> None:
    lab.allow("good.test", mode=Mode.REPORT)
    with lab.tls(ATTACKER, "evil.test") as refused, lab.tls(ATTACKER, "good.test") as kept:
        assert refused.recv(100) == ATTACKER.encode()
        assert kept.recv(100) == GOOD.encode()
        lab.allow("good.test")
        assert_reset(refused)
        kept.sendall(b"more")
        assert kept.recv(100) == b"more"
