"""The gateway's process: changes of policies, limits, what it runs as, a new start."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import time
from collections import Counter
from pathlib import Path

import dns.message
import dns.rcode
import pytest

from egress.far_side import (
    GOOD,
    OTHER,
    RESOLVER,
    SERVER_FIRST,
)
from egress.lab import FIRST, SECOND, Lab
from egress.talk import assert_refused, assert_reset, get, response
from sandgate.limits import BURST_SECONDS, TrafficLimits
from sandgate.policy import parse_policy


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


_TOGETHER = 8


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
        refused = float("inf")
        # For more than a second: a second's first lines are all that the log gets of it.
        while codes.total() < most * 2 or time.monotonic() < refused + 1.2:
            for _ in range(_TOGETHER):  # one after the other, a busy machine is too slow for it
                sock.sendall(len(query).to_bytes(2, "big") + query if tcp else query)
            for _ in range(_TOGETHER):
                size = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big") if tcp else 4096
                codes[dns.message.from_wire(sock.recv(size)).rcode()] += 1
            if codes[dns.rcode.REFUSED]:
                refused = min(refused, time.monotonic())
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


def test_a_gateway_that_ends_answers_the_queries_that_have_come(lab: Lab) -> None:
    lab.allow("good.test")
    query = dns.message.make_query("good.test", "A").to_wire()
    with lab.open(socket.SOCK_DGRAM) as sock:
        sock.connect((RESOLVER, 53))
        sock.settimeout(5)
        os.kill(lab.pid, signal.SIGSTOP)
        try:
            for _ in range(20):
                sock.send(query)
            os.kill(lab.pid, signal.SIGTERM)
        finally:
            os.kill(lab.pid, signal.SIGCONT)
        codes = [dns.message.from_wire(sock.recv(4096)).rcode() for _ in range(20)]
    assert codes == [dns.rcode.NOERROR] * 20
    lab.stop_gateway()
    lab.start_gateway()


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
