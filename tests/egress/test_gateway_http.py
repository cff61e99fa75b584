"""HTTP through the gateway: every request is judged by its host, whatever it is hidden behind."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import pytest

from egress.far_side import (
    ATTACKER,
    GOOD,
    OTHER,
)
from egress.hello import genuine
from egress.lab import Lab
from egress.talk import assert_reset, get, response


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
        _ALLOWED + b"Connection: upgrade\r\nUpgrade: h2c, websocket\r\n\r\n",
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


def test_who_offers_http2_gets_an_answer_in_http1_and_no_tunnel(lab: Lab) -> None:
    """Java's client, for one, makes this offer with its first request."""
    lab.allow("good.test")
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    with lab.connect(GOOD, 80) as sock:
        sock.sendall(get("good.test", "/first", offer))
        assert response(sock) == f"{GOOD} /first 0"
        sock.sendall(get("good.test", "/second"))
        assert response(sock) == f"{GOOD} /second 0"
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert_reset(sock)
    paths = ("/first", "/second")
    assert lab.side.requests == [(GOOD, get("good.test", path)) for path in paths]


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
