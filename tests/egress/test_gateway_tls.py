"""TLS by name through the gateway: what it lets through, and what never arrives."""

from __future__ import annotations

import os
import socket
import time

import pytest

from egress.far_side import (
    ATTACKER,
    GOOD,
    INGRESS,
    INGRESS_PORT,
    OTHER,
    OWN,
    SERVER_FIRST,
)
from egress.hello import extension, genuine, hello, server_names
from egress.lab import FIRST, GATEWAY, SECOND, Lab
from egress.talk import assert_refused, assert_reset, get, response
from sandgate.policy import parse_policy


def test_an_allowed_name_is_dialled_and_bytes_pass_both_ways(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.tls(GOOD, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
        blob = os.urandom(1 << 20)
        tls.settimeout(20)
        received = bytearray()
        for start in range(0, len(blob), 65536):
            tls.sendall(blob[start : start + 65536])
            while len(received) < start + 65536:
                received += tls.recv(65536)
        assert received == blob
    line = lab.wait_decision(protocol="tls", name="good.test", verdict="allow")
    assert line["reason"] == "allowed_name"
    assert line["rule"] == "good.test"
    assert (line["destination"], line["port"]) == (GOOD, 443)
    assert line["bytesSent"] > 1 << 20 < line["bytesReceived"]


def test_the_name_is_dialled_and_not_the_address_that_the_sandbox_claims(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.tls(ATTACKER, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
    with lab.connect(ATTACKER, 80) as sock:
        sock.sendall(get("good.test"))
        assert response(sock) == f"{GOOD} / 0"
    assert lab.side.contacts[ATTACKER, 443] == lab.side.contacts[ATTACKER, 80] == 0


@pytest.mark.parametrize("name", ["evil.test", "xgood.test", "good.test.evil.test"])
def test_a_name_that_is_not_allowed_is_reset_and_nothing_is_asked(lab: Lab, name: str) -> None:
    lab.allow("good.test", "*.good.test")
    with lab.connect(ATTACKER, 443) as sock:
        sock.sendall(genuine(name))
        assert_reset(sock)
    assert not lab.side.contacts
    assert not lab.side.queries
    assert lab.wait_decision(name=name, verdict="deny")["reason"] == "denied_address"


@pytest.mark.parametrize(
    "shown",
    [
        hello(),
        hello(server_names(b"good.test", b"evil.test")),
        hello(server_names(GOOD.encode())),
        hello(server_names(b"good.test\0.evil.test")),
        hello(server_names(b"good.test"), server_names(b"evil.test")),
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x16\x03\x01\x00\x00",
    ],
)
def test_a_hello_without_one_clear_name_is_reset_at_once(lab: Lab, shown: bytes) -> None:
    lab.allow("good.test")
    with lab.connect(GOOD, 443) as sock:
        sock.sendall(shown)
        assert_reset(sock)
    assert not lab.side.contacts


def test_a_hello_without_name_passes_where_the_address_is_allowed(lab: Lab) -> None:
    lab.allow("other.test", GOOD)
    with lab.tls(GOOD, None) as tls:
        assert tls.recv(100) == GOOD.encode()
    assert lab.wait_decision(reason="allowed_address")["detail"] == "tls_no_server_name"


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_hello_in_many_segments_and_records_is_read(lab: Lab, size: int) -> None:
    lab.allow("good.test")
    shown = genuine("good.test")
    cut = hello(server_names(b"good.test"), extension(21, bytes(300)), size=size)
    for data in (shown, cut):
        with lab.connect(ATTACKER, 443) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(data), max(size, 5)):
                sock.sendall(data[start : start + max(size, 5)])
            assert sock.recv(1)[0] in (0x15, 0x16)  # the origin answers: an alert, or its hello
    assert lab.side.contacts[GOOD, 443] == 2
    assert lab.side.contacts[ATTACKER, 443] == 0


def test_a_hello_of_16_kib_is_read(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.connect(ATTACKER, 443) as sock:
        sock.sendall(hello(extension(21, bytes(16_000)), server_names(b"good.test")))
        assert sock.recv(1)[0] in (0x15, 0x16)
    assert lab.side.contacts[GOOD, 443] == 1


def test_a_silent_client_is_reset_after_five_seconds(lab: Lab) -> None:
    lab.allow("good.test")
    with (
        lab.connect(GOOD, 443) as tls,
        lab.connect(GOOD, 80) as http,
        lab.connect(GOOD, 80) as slow,
    ):
        slow.sendall(b"GET / HTTP/1.1\r\nHost: good.t")
        start = time.monotonic()
        for sock in (tls, http, slow):
            assert_reset(sock, within=7)
        assert 4.5 < time.monotonic() - start < 6
    assert not lab.side.contacts
    assert lab.wait_decision(detail="timeout")["verdict"] == "deny"


def test_a_server_that_speaks_first_works_where_its_address_is_allowed(lab: Lab) -> None:
    lab.allow("other.test", SERVER_FIRST)
    with lab.connect(SERVER_FIRST, 443) as sock:
        sock.sendall(b"EHLO me\r\n")
        assert sock.recv(100) == b"220 hello\r\n"
        sock.sendall(b"more\r\n")
        sock.shutdown(socket.SHUT_WR)  # the other direction stays open
        assert sock.recv(100) == b"bye 15\r\n"
        assert sock.recv(100) == b""


def test_a_client_that_says_nothing_and_ends_still_gets_an_allowed_servers_greeting(
    lab: Lab,
) -> None:
    lab.allow("other.test", SERVER_FIRST)
    with lab.connect(SERVER_FIRST, 443) as sock:
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while data := sock.recv(100):
            received += data
        assert received == b"220 hello\r\nbye 0\r\n"


@pytest.mark.parametrize(
    "name",
    ["private.test", "loopback.test", "zero.test", "metadata.test", "own.test", "inward.test"],
)
def test_an_allowed_name_that_leads_inward_is_refused(lab: Lab, name: str) -> None:
    lab.allow(name)
    with lab.connect(GOOD, 443) as tls, lab.connect(GOOD, 80) as http:
        tls.sendall(genuine(name))
        http.sendall(get(name))
        assert_reset(tls)
        assert_reset(http)
    assert not lab.side.contacts
    assert len(lab.decisions(name=name, protocol="http", reason="always_denied")) == 1
    assert len(lab.decisions(name=name, protocol="tls", reason="always_denied")) == 1


@pytest.mark.parametrize("address", [OWN, "10.1.2.3", GATEWAY, "198.18.0.30"])
def test_no_policy_opens_an_inner_address(lab: Lab, address: str) -> None:
    lab.set_policy(parse_policy(["other.test", "0.0.0.0/0"], ["0.0.0.0/0"]))
    with lab.connect(address, 80) as sock:
        sock.sendall(get("whatever.test"))
        assert_reset(sock)
    assert not lab.side.contacts


def test_the_outer_addresses_of_a_name_are_tried_in_turn(lab: Lab) -> None:
    lab.allow("mixed.test", "third.test", "dead.test")
    for name in ("mixed.test", "third.test"):
        start = time.monotonic()
        with lab.tls(ATTACKER, name) as tls:
            assert tls.recv(100) == GOOD.encode()
        assert time.monotonic() - start < 2


def test_a_destination_that_does_not_answer_ends_in_a_reset(lab: Lab) -> None:
    lab.allow("dead.test", "nowhere.test")
    with lab.connect(GOOD, 443) as dead, lab.connect(GOOD, 443) as nowhere:
        dead.sendall(genuine("dead.test"))
        nowhere.sendall(genuine("nowhere.test"))
        assert_reset(nowhere)
        assert_reset(dead, within=7)
    assert lab.wait_decision(name="nowhere.test")["reason"] == "name_unresolvable"
    assert lab.wait_decision(name="dead.test")["reason"] == "unreachable"


def test_a_source_that_is_no_sandbox_is_reset(lab: Lab) -> None:
    lab.allow("good.test")
    assert_refused(lab, GOOD, 80, source="198.18.0.99")
    assert lab.wait_decision(reason="unknown_sandbox")["sandboxID"] is None


def test_sandboxes_have_their_own_policies(lab: Lab) -> None:
    lab.allow("good.test")
    lab.allow("other.test", address=SECOND, sandbox_id="second")
    for source, name, server in ((FIRST, "good.test", GOOD), (SECOND, "other.test", OTHER)):
        with lab.connect(ATTACKER, 80, source) as sock:
            sock.sendall(get(name))
            assert response(sock) == f"{server} / 0"
    with lab.connect(OTHER, 80, FIRST) as sock:
        sock.sendall(get("other.test"))
        assert_reset(sock)


def test_names_of_the_node_lead_to_its_ingress_and_no_others_do(lab: Lab) -> None:
    name = "3000-abc.sandgate.localhost"
    lab.allow("*.sandgate.localhost", "good.test")
    with lab.tls(INGRESS, name, INGRESS_PORT) as tls:
        assert tls.recv(100) == INGRESS.encode()
    with lab.tls(ATTACKER, name) as tls:
        assert tls.recv(100) == INGRESS.encode()
    with lab.connect(INGRESS, INGRESS_PORT) as sock:
        sock.sendall(genuine("good.test"))
        assert_reset(sock)
    assert set(lab.side.contacts) == {(INGRESS, INGRESS_PORT)}
    lab.allow("good.test")
    with lab.connect(INGRESS, INGRESS_PORT) as sock:
        sock.sendall(genuine(name))
        assert_reset(sock)
