"""The gateway process in network namespaces: what it lets through, and what never arrives."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from egress.far_side import (
    ATTACKER,
    GOOD,
    INGRESS,
    INGRESS_PORT,
    OTHER,
    OWN,
    RESOLVER,
    SERVER_FIRST,
)
from egress.hello import extension, genuine, hello, server_names
from egress.lab import FIRST, GATEWAY, SECOND, Lab
from sandgate.limits import BURST_SECONDS, TrafficLimits
from sandgate.policy import parse_policy


def get(name: str, path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{more}\r\n".encode()


def response(sock: socket.socket) -> str:
    """The body of one response with a Content-Length; what follows it is left unread."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        received = sock.recv(1)
        assert received, f"closed after {head!r}"
        head += received
    size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    body = bytearray()
    while len(body) < size:
        received = sock.recv(size - len(body))
        assert received, f"closed after {len(body)} of {size} bytes"
        body += received
    return body.decode()


def assert_reset(sock: socket.socket, within: float = 1.0) -> None:
    """The connection is cut off with a TCP reset, not just closed."""
    start = time.monotonic()
    # The ssl module takes a reset for an end of input; below it, it is to be seen.
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.settimeout(within)
        with pytest.raises(ConnectionResetError):
            while raw.recv(65536):
                pass
    assert time.monotonic() - start < within


def assert_refused(lab: Lab, address: str, port: int, source: str = FIRST) -> None:
    """A connection is reset before anything is sent; that may be seen while connecting."""
    with pytest.raises(ConnectionResetError), lab.connect(address, port, source) as sock:
        sock.settimeout(1)
        sock.recv(1)


# TLS


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


# Addresses


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


# HTTP


def test_requests_for_one_name_share_a_connection_and_arrive_verbatim(lab: Lab) -> None:
    lab.allow("good.test")
    first = b"GET /a?b=%20 HTTP/1.1\r\nhOsT:  GOOD.test:80 \r\nX-Odd:\tvalue \r\n\r\n"
    second = b"POST /p HTTP/1.1\r\nHost: good.test.\r\nContent-Length: 5\r\n\r\n12345"
    with lab.connect(ATTACKER, 80) as sock:
        sock.sendall(first)
        assert response(sock) == f"{GOOD} /a?b=%20 0"
        sock.sendall(second)
        assert response(sock) == f"{GOOD} /p 5"
        sock.sendall(first + second)  # pipelined
        received = b""
        while received.count(b"HTTP/1.1 200") < 2 or not received.endswith(b"/p 5"):
            received += sock.recv(65536)
    assert lab.side.contacts == {(GOOD, 80): 1}
    assert lab.side.requests == [(GOOD, request) for request in (first, second, first, second)]


def test_another_allowed_host_is_dialled_anew_after_the_response(lab: Lab) -> None:
    lab.allow("good.test", "other.test")
    with lab.connect(ATTACKER, 80) as sock:
        sock.sendall(get("good.test", "/slow") + get("other.test") + get("good.test", "/chunked"))
        assert response(sock) == f"{GOOD} /slow 0"
        assert response(sock) == f"{OTHER} / 0"
        assert sock.recv(15) == b"HTTP/1.1 200 OK"
    assert [address for address, _ in lab.side.requests] == [GOOD, OTHER, GOOD]
    lab.wait_decision(name="other.test", protocol="http", verdict="allow")


def test_requests_around_large_bodies_are_judged_one_by_one(lab: Lab) -> None:
    lab.allow("good.test", "other.test")
    size = 3_000_001
    upload = get("good.test", "/up", f"Content-Length: {size}\r\n") + bytes(size)
    with lab.connect(ATTACKER, 80) as sock:
        for name, server in (("good.test", GOOD), ("other.test", OTHER), ("good.test", GOOD)):
            sock.sendall(get(name, f"/bulk/{size}") + get("other.test", "/after"))
            assert response(sock) == "\0" * size
            assert response(sock) == f"{OTHER} /after 0"
            sock.sendall(get(name))
            assert response(sock) == f"{server} / 0"
        sock.sendall(upload + get("other.test", "/after"))
        assert response(sock) == f"{GOOD} /up {size}"
        assert response(sock) == f"{OTHER} /after 0"
        sock.sendall(upload + get("evil.test"))
        with suppress(ConnectionResetError):  # which may overtake the answer
            response(sock)
            assert_reset(sock)
    assert not lab.side.contacts[ATTACKER, 80]
    assert all(b"evil" not in request for _, request in lab.side.requests)
    bulk = [line for line in lab.decisions(name="good.test") if line["bytesSent"] > size]
    more = [line["bytesSent"] - len(upload) for line in bulk]
    assert more == [len(get("good.test")), 0], "the request before it shared the connection"


def test_a_transfer_is_cut_when_the_policy_tightens(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/bulk/1000000000"))
        for _ in range(100):
            assert sock.recv(65536)
        lab.allow("other.test")
        assert_reset(sock)
    line = lab.wait_decision(reason="policy_changed")
    assert 1_000_000 < line["bytesReceived"] < 1_000_000_000


def test_a_denied_host_on_a_kept_alive_connection_is_reset(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test"))
        assert response(sock) == f"{GOOD} / 0"
        sock.sendall(get("evil.test"))
        assert_reset(sock)
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/slow") + get("evil.test"))
        assert_reset(sock)
    assert all(b"evil" not in request for _, request in lab.side.requests)
    assert lab.side.contacts[ATTACKER, 80] == 0


_ALLOWED = b"POST / HTTP/1.1\r\nHost: good.test\r\n"


@pytest.mark.parametrize(
    "attack",
    [
        _ALLOWED + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _ALLOWED + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
        _ALLOWED + b"Host: evil.test\r\n\r\n",
        _ALLOWED + b"X: 1\r\n Host: evil.test\r\n\r\n",
        _ALLOWED + b"X: 1\nHost: evil.test\r\n\r\n",
        _ALLOWED + b"X: 1\rHost: evil.test\r\n\r\n",
        _ALLOWED + b"X: \0\r\n\r\n",
        _ALLOWED + b"Transfer-Encoding: xchunked\r\n\r\n",
        _ALLOWED + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        b"GET http://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: good.test\0.evil.test\r\n\r\n",
        b"CONNECT good.test:443 HTTP/1.1\r\nHost: good.test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_reaches_nobody(lab: Lab, attack: bytes) -> None:
    lab.allow("good.test")
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(attack)
        assert_reset(sock)
    assert not lab.side.contacts
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/before"))
        assert response(sock) == f"{GOOD} /before 0"
        sock.sendall(attack)
        assert_reset(sock)
    assert lab.side.contacts == {(GOOD, 80): 1}
    assert lab.side.requests[-1] == (GOOD, get("good.test", "/before"))


def test_a_broken_chunked_body_is_cut_before_what_hides_behind_it(lab: Lab) -> None:
    lab.allow("good.test")
    head = b"POST /c HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(head + b"5;x\nGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert_reset(sock)
    assert all(b"evil" not in request for _, request in lab.side.requests)


def test_websocket_becomes_a_tunnel_only_once_the_origin_agreed(lab: Lab) -> None:
    lab.allow("good.test")
    upgrade = "Connection: upgrade\r\nUpgrade: WebSocket\r\n"
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/ws", upgrade) + b"\x81\x02hi")
        received = b""
        while not received.endswith(b"\x81\x02hi"):
            received += sock.recv(65536)
        assert received.startswith(b"HTTP/1.1 101 ")
        sock.sendall(b"anything GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert sock.recv(65536).startswith(b"anything")
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/refused", upgrade) + get("evil.test"))
        assert_reset(sock)
    assert all(b"Host: evil" not in request for _, request in lab.side.requests)


def test_a_host_that_is_not_allowed_passes_where_its_address_is(lab: Lab) -> None:
    lab.allow("good.test", OTHER)
    with lab.connect(OTHER, 80) as sock:
        sock.sendall(get("good.test"))
        assert response(sock) == f"{GOOD} / 0"  # by name first
        sock.sendall(get("unlisted.test"))
        assert response(sock) == f"{OTHER} / 0"
        sock.sendall(get("good.test"))
        assert response(sock) == f"{OTHER} / 0"  # by now it is a relay to that address


def test_a_large_body_passes_with_a_reader_that_is_slow(lab: Lab) -> None:
    lab.allow("good.test")
    size = 30_000_000
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", f"/bulk/{size}"))
        time.sleep(0.3)
        received = 0
        while received < size:
            received += len(sock.recv(1 << 18))
    assert lab.peak_memory() < 80_000


def test_a_client_that_never_reads_gets_no_more_than_fits_however_often_it_switches(
    lab: Lab,
) -> None:
    lab.allow("good.test", "other.test")
    requests = get("good.test", "/bulk/10000") + get("other.test", "/bulk/10000")
    with lab.open() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((GOOD, 80))
        sock.sendall(requests * 500)
        time.sleep(1.5)
        assert len(lab.side.requests) < 400
    assert lab.peak_memory() < 80_000


def test_a_sandbox_can_send_no_more_than_fits_to_a_server_that_never_reads(lab: Lab) -> None:
    lab.allow("sink.test")
    with lab.connect(ATTACKER, 443) as sock:
        sock.sendall(genuine("sink.test") + bytes(150_000))
        sock.settimeout(0.5)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 100_000_000:
                sent += sock.send(bytes(1 << 20))
    assert lab.peak_memory() < 80_000


# Policies


def test_a_tightened_policy_resets_what_no_longer_passes_and_only_that(lab: Lab) -> None:
    lab.allow("good.test", "other.test", SERVER_FIRST)
    with (
        lab.tls(GOOD, "good.test") as doomed,
        lab.tls(OTHER, "other.test") as kept,
        lab.connect(GOOD, 80) as http,
        lab.connect(SERVER_FIRST, 443) as relay,
    ):
        assert doomed.recv(100) == GOOD.encode()
        assert kept.recv(100) == OTHER.encode()
        http.sendall(get("good.test"))
        response(http)
        relay.sendall(b"x")
        assert relay.recv(100) == b"220 hello\r\n"
        lab.allow("other.test")
        for sock in (doomed, http, relay):
            assert_reset(sock)
        kept.sendall(b"still here")
        assert kept.recv(100) == b"still here"
    assert len(lab.decisions(reason="policy_changed", verdict="deny")) == 3


def test_a_name_that_was_dialled_elsewhere_is_not_kept_for_its_claimed_address(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.tls(OTHER, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
        lab.set_policy(parse_policy([OTHER], ["0.0.0.0/0"]))
        assert_reset(tls)


def test_removing_a_sandbox_resets_its_connections_and_closes_the_door(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.tls(GOOD, "good.test") as tls, lab.connect(GOOD, 443) as silent:
        assert tls.recv(100) == GOOD.encode()
        assert lab.request(op="remove", address=FIRST)["ok"]
        assert_reset(tls)
        assert_reset(silent)
    assert_refused(lab, GOOD, 443)


def test_an_address_taken_over_by_another_sandbox_takes_no_connection_with_it(lab: Lab) -> None:
    lab.allow("good.test", sandbox_id="one")
    with lab.tls(GOOD, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
        lab.allow("good.test", sandbox_id="two")
        assert_reset(tls)


# DNS


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


# The process


def test_the_gateway_runs_without_privileges(lab: Lab) -> None:
    lines = Path(f"/proc/{lab.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Gid"].split() == ["65534"] * 4
    assert not status["Groups"].strip()
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[kind], 16) == 0, kind
    assert status["NoNewPrivs"] == "1"
    assert Path(f"/proc/{lab.pid}/environ").stat().st_uid == 0  # not dumpable, so not nobody's
    mode = lab.control_path.stat()
    assert (mode.st_mode & 0o777, mode.st_uid) == (0o600, 65534)


def test_the_control_socket_refuses_what_it_does_not_understand(lab: Lab) -> None:
    assert lab.request(op="ping") == {"id": 1, "ok": True}
    policy: dict[str, list[str]] = {"allow": [], "deny": [], "names": []}
    for request in (
        {"op": "nonsense"},
        {"op": "ping", "extra": 1},
        {"op": "remove", "address": "1.1.1.1"},
        {"op": "set", "sandbox_id": "a/b", "address": FIRST, "policy": policy},
        {"op": "set", "sandbox_id": "a", "address": FIRST, "policy": {**policy, "names": [1]}},
        {"op": "set", "sandbox_id": "a", "address": FIRST, "policy": {**policy, "allow": ["x"]}},
        {"op": "set", "sandbox_id": "a", "address": FIRST, "policy": {**policy, "names": ["A.B"]}},
        {"op": "retain", "addresses": "all"},
    ):
        reply = lab.request(**request)
        assert not reply["ok"], request
        assert reply["error"]


def test_connections_over_the_limit_of_a_sandbox_are_reset(lab: Lab) -> None:
    lab.allow("good.test")
    opened = []
    try:
        for _ in range(2048):
            sock = lab.open()
            opened.append(sock)
            sock.connect((GOOD, 443))
        assert_refused(lab, GOOD, 443)
        assert lab.wait_decision(reason="limit_connections")["sandboxID"] == "sandbox"
        lab.allow("good.test", address=SECOND, sandbox_id="second")
        with lab.connect(GOOD, 80, SECOND) as sock:
            sock.sendall(get("good.test"))
            assert response(sock) == f"{GOOD} / 0"
    finally:
        for sock in opened:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()


@pytest.mark.parametrize("tcp", [False, True])
def test_queries_that_come_too_fast_are_refused_at_once(lab: Lab, tcp: bool) -> None:
    lab.allow("good.test")
    most = TrafficLimits().dns_queries * BURST_SECONDS
    query = dns.message.make_query("good.test", "A").to_wire()
    codes = Counter[dns.rcode.Rcode]()
    with lab.open(socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
        sock.connect((RESOLVER, 53))
        sock.settimeout(5)
        began = time.monotonic()
        # Two seconds at least: a second's first lines are all that the log gets of it.
        while codes.total() < most * 2 or time.monotonic() < began + 2.2:
            sock.sendall(len(query).to_bytes(2, "big") + query if tcp else query)
            size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big") if tcp else 4096
            codes[dns.message.from_wire(sock.recv(size)).rcode()] += 1
        seconds = time.monotonic() - began
    allowed = codes[dns.rcode.NOERROR]
    assert most <= allowed <= most + TrafficLimits().dns_queries * seconds + 1
    assert codes[dns.rcode.REFUSED] == codes.total() - allowed
    assert lab.wait_decision(reason="limit_dns_rate")["sandboxID"] == "sandbox"
    lab.allow("good.test", address=SECOND, sandbox_id="second")
    assert lab.ask("good.test", source=SECOND).rcode() == dns.rcode.NOERROR


def test_a_dns_connection_that_sends_no_query_is_ended(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.connect(RESOLVER, 53) as sock:
        sock.sendall(b"\0\x0cno dns query")
        assert sock.recv(100)
        assert sock.recv(100) == b""


def test_a_gateway_that_starts_again_knows_nobody(lab: Lab) -> None:
    lab.allow("good.test")
    with lab.tls(GOOD, "good.test") as tls:
        assert tls.recv(100) == GOOD.encode()
        lab.stop_gateway()
        assert_reset(tls)
        with pytest.raises(ConnectionRefusedError), lab.connect(GOOD, 443):
            pass
    lab.start_gateway()
    assert_refused(lab, GOOD, 443)
    assert json.loads(lab.since_start().splitlines()[-1])["reason"] == "unknown_sandbox"
