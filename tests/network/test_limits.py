"""What one sandbox may open and move: beyond it refusals at once, and nobody else notices."""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from network import netlab
from network.netlab import (
    GATEWAY,
    GATEWAY_PORT,
    HTTPS_PORT,
    INGRESS,
    OPEN,
    PATIENCE,
    PROHIBITED,
    RESET,
    Lab,
    connect_outcome,
    run,
    tcp_outcome,
    udp_outcome,
)
from sandgate.limits import BURST_SECONDS
from sandgate.network import sysctl
from sandgate.network.namespaces import inside
from sandgate.policy import EgressPolicy, parse_policy

EVERYTHING = EgressPolicy()
BY_NAME = parse_policy(["example.com"], ["0.0.0.0/0"])
FEW, SLOW = 20, 10
"""Connections open, and opened a second."""
PORT = 7777


@pytest.fixture
def few() -> Iterator[Lab]:
    """Sandboxes may have few connections."""
    with netlab.lab(limits=replace(netlab.PLENTY, connections=FEW)) as made:
        yield made


@pytest.fixture
def slow() -> Iterator[Lab]:
    """Sandboxes may open connections, and ask, slowly."""
    slowly = replace(netlab.PLENTY, new_connections=SLOW, dns_queries=SLOW)
    with netlab.lab(limits=slowly) as made:
        yield made


def tracked(lab: Lab, *words: str) -> int:
    """How many connections the node's kernel tracks; those that show all these words."""
    with inside(lab.host):
        if not words:
            return int(sysctl.read("net.netfilter.nf_conntrack_count"))
    lines = run(lab.host, "cat", "/proc/net/nf_conntrack").splitlines()
    return sum(all(word in line for word in words) for line in lines)


def refusals(lab: Lab, reason: str) -> bool:
    """Does the chain that gives this reason refuse what comes too fast or is too much?"""
    chain = run(lab.host, "nft", "list", "chain", "inet", "sandgate", f"refuse_{reason}")
    return f'log prefix "{reason}"' in chain


def opens(lab: Lab, sandbox: int, count: int, port: int = PORT) -> list[str]:
    """What so many connections meet, all kept open."""
    return [connect_outcome(lab.client(sandbox), ("9.9.9.9", port)) for _ in range(count)]


def lives(lab: Lab, slot: int, far: socket.socket) -> Counter[str]:
    """What one connection more than may be open meet in a sandbox that then ends with them."""
    eventually(lambda: slot not in lab.network.slots())
    sandbox = lab.sandbox(slot, EVERYTHING)
    clients = [netlab.make_socket(sandbox, socket.SOCK_STREAM) for _ in range(FEW + 1)]
    met = Counter(connect_outcome(client, ("9.9.9.9", PORT)) for client in clients)
    lab.network.remove(slot)
    for client in clients:
        # A connection that waits for its end would keep the namespace.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    for _ in range(met[OPEN]):
        far.accept()[0].close()
    os.close(lab.sandboxes.pop(slot))
    return met


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_more_connections_are_open_than_may_be(few: Lab) -> None:
    sandbox, neighbour = few.sandbox(0, EVERYTHING), few.sandbox(1, EVERYTHING)
    listener = few.listen(few.far, "0.0.0.0", PORT)
    clients = [few.client(sandbox) for _ in range(FEW)]
    assert {connect_outcome(client, ("9.9.9.9", PORT)) for client in clients} == {OPEN}
    for _ in range(100):
        assert tcp_outcome(sandbox, "1.1.1.1", PORT) == RESET
    assert udp_outcome(sandbox, "9.9.9.9", PORT) == PROHIBITED
    assert tcp_outcome(neighbour, "9.9.9.9", PORT) == OPEN
    clients[0].send(b"those that are open go on")
    listener.accept()[0].close()
    eventually(lambda: tcp_outcome(sandbox, "9.9.9.9", PORT) == OPEN)
    assert refusals(few, "limit_connections")


def test_what_the_gateway_and_the_ingress_take_counts_too(few: Lab) -> None:
    sandbox = few.sandbox(0, BY_NAME)
    few.listen(few.host, GATEWAY, GATEWAY_PORT, transparent=True)
    assert set(opens(few, sandbox, FEW, 443)) == {OPEN}
    assert tcp_outcome(sandbox, "9.9.9.9", 80) == RESET
    few.listen(few.host, INGRESS, HTTPS_PORT)
    guest = few.sandbox(1, EVERYTHING)
    for count in range(FEW + 1):
        meets = connect_outcome(few.client(guest), (str(INGRESS), HTTPS_PORT))
        assert meets == (OPEN if count < FEW else RESET)


def test_connections_are_not_opened_faster_than_may_be(slow: Lab) -> None:
    sandbox, neighbour = slow.sandbox(0, EVERYTHING), slow.sandbox(1, EVERYTHING)
    slow.listen(slow.far, "0.0.0.0", PORT)
    started = time.monotonic()
    met = Counter(opens(slow, sandbox, 200))
    most = SLOW * (BURST_SECONDS + time.monotonic() - started) + 1
    assert SLOW * BURST_SECONDS <= met.pop(OPEN) <= most
    assert set(met) == {RESET}
    assert tcp_outcome(neighbour, "9.9.9.9", PORT) == OPEN
    eventually(lambda: tcp_outcome(sandbox, "9.9.9.9", PORT) == OPEN)
    assert refusals(slow, "limit_connection_rate")


def test_what_the_policy_refuses_does_not_count(slow: Lab) -> None:
    sandbox = slow.sandbox(0, parse_policy(["9.9.9.9"], ["0.0.0.0/0"]))
    slow.listen(slow.far, "0.0.0.0", PORT)
    for _ in range(200):
        assert tcp_outcome(sandbox, "1.1.1.1", PORT) == RESET
    assert tcp_outcome(sandbox, "9.9.9.9", PORT) == OPEN


def test_datagrams_to_many_ports_do_not_fill_the_table(few: Lab) -> None:
    sandbox, neighbour = few.sandbox(0, EVERYTHING), few.sandbox(1, EVERYTHING)
    few.listen(few.far, "0.0.0.0", PORT)
    with netlab.make_socket(sandbox, socket.SOCK_DGRAM) as flood:
        for number in range(5000):
            flood.sendto(b"x", (f"9.9.9.{number % 250}", 1024 + number))
    assert tracked(few, "udp", "198.18.0.16") <= FEW
    assert tcp_outcome(neighbour, "9.9.9.9", PORT) == OPEN


def test_half_open_connections_do_not_fill_the_table(few: Lab) -> None:
    sandbox, neighbour = few.sandbox(0, EVERYTHING), few.sandbox(1, EVERYTHING)
    run(few.far, "nft", "-f", "-", stdin=_SILENT)
    few.listen(few.far, "0.0.0.0", PORT)
    outcomes = Counter[str]()
    for _ in range(500):
        client = few.client(sandbox)
        client.setblocking(False)
        client.connect_ex(("9.9.9.9", 81))
        _, done, _ = select.select([], [client], [], 0)
        outcomes["refused" if done else "pending"] += 1
    assert outcomes["pending"] == FEW
    assert tracked(few, "SYN_SENT") == FEW
    assert tcp_outcome(neighbour, "9.9.9.9", PORT) == OPEN
    # Minutes by the kernel's default.
    assert all(left <= 30 for left in seconds_left(few, "SYN_SENT"))


def test_closed_connections_leave_the_table_within_seconds(few: Lab) -> None:
    sandbox = few.sandbox(0, EVERYTHING)
    listener = few.listen(few.far, "0.0.0.0", PORT)
    for _ in range(FEW * 3):
        with closing(few.client(sandbox)) as client:
            client.connect(("9.9.9.9", PORT))
            listener.accept()[0].close()
            assert client.recv(1) == b""
        time.sleep(0.01)  # the kernel forgets once in a tick of its clock
    eventually(lambda: tracked(few, "TIME_WAIT") > 0)
    assert all(left <= 5 for left in seconds_left(few, "TIME_WAIT"))


def test_a_stream_without_answers_counts_once(few: Lab) -> None:
    sandbox = few.sandbox(0, EVERYTHING)
    few.receive(few.far, "9.9.9.9", PORT)
    few.listen(few.far, "0.0.0.0", PORT)
    with netlab.make_socket(sandbox, socket.SOCK_DGRAM) as stream:
        stream.connect(("9.9.9.9", PORT))
        for _ in range(5000):
            stream.send(b"x")
        assert set(opens(few, sandbox, FEW - 1)) == {OPEN}


def test_queries_come_no_faster_than_may_be_and_are_not_tracked(slow: Lab) -> None:
    sandbox, neighbour = slow.sandbox(0, EVERYTHING), slow.sandbox(1, EVERYTHING)
    resolver = slow.receive(slow.host, GATEWAY, 53, transparent=True)
    reply = slow.client(slow.host, socket.SOCK_DGRAM)
    reply.setsockopt(socket.SOL_IP, netlab.IP_TRANSPARENT, 1)
    reply.bind(("8.8.8.8", 53))
    answering = threading.Thread(target=_answer, args=(resolver, reply))
    answering.start()
    try:
        before = tracked(slow)
        started = time.monotonic()
        met = Counter(udp_outcome(sandbox, "8.8.8.8", 53) for _ in range(150))
        most = SLOW * (BURST_SECONDS + time.monotonic() - started) + 1
        assert SLOW * BURST_SECONDS <= met.pop(OPEN) <= most
        assert set(met) == {PROHIBITED}
        assert udp_outcome(neighbour, "8.8.8.8", 53) == OPEN
        assert tracked(slow) == before
        eventually(lambda: udp_outcome(sandbox, "8.8.8.8", 53) == OPEN)
        assert refusals(slow, "limit_dns_rate")
    finally:
        with netlab.make_socket(slow.host, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", (str(GATEWAY), 53))
        answering.join()


def test_a_new_sandbox_inherits_no_connections(few: Lab) -> None:
    far = few.listen(few.far, "0.0.0.0", PORT)
    for _ in range(3):
        assert lives(few, 0, far) == {OPEN: FEW, RESET: 1}


def test_the_limits_hold_after_the_rules_were_made_anew(few: Lab) -> None:
    sandbox = few.sandbox(0, EVERYTHING)
    few.listen(few.far, "0.0.0.0", PORT)
    assert set(opens(few, sandbox, FEW // 2)) == {OPEN}
    with inside(few.host):
        few.network.setup({0: EVERYTHING})
    assert Counter(opens(few, sandbox, FEW + 5)) == {OPEN: FEW, RESET: 5}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_thousands_of_sandboxes_later_connections_are_still_tracked(few: Lab) -> None:
    far = few.listen(few.far, "0.0.0.0", PORT)
    neighbour = few.sandbox(1, EVERYTHING)
    steady = few.client(neighbour)
    steady.connect(("9.9.9.9", PORT))
    few.stack.enter_context(far.accept()[0])
    for number in range(2000):
        assert lives(few, 2 + number % 100, far) == {OPEN: FEW, RESET: 1}, number
    steady.send(b"still there")
    assert tracked(few, "ESTABLISHED", "198.18.0.17") == 1
    assert Counter(opens(few, few.sandbox(0, EVERYTHING), FEW + 3)) == {OPEN: FEW, RESET: 3}


@pytest.mark.parametrize("upwards", [False, True])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_bandwidth_is_what_was_set_each_way(kind: socket.SocketKind, upwards: bool) -> None:
    mine, other = 40, 400
    limits = replace(
        netlab.PLENTY,
        download_mbit=other if upwards else mine,
        upload_mbit=mine if upwards else other,
    )
    with netlab.lab(limits=limits) as lab:
        sandbox = lab.sandbox(0, EVERYTHING)
        measured = _megabits(lab, sandbox, kind, upwards)
    # What counts against the limit are whole frames: some 3 % of headers.
    assert mine * 0.7 < measured < mine * 1.05


_SILENT = """
table inet silent {
    chain input {
        type filter hook input priority 0
        tcp dport 81 drop
    }
}
"""


def seconds_left(lab: Lab, state: str) -> list[int]:
    """After how many seconds the kernel forgets connections of this state."""
    table = run(lab.host, "cat", "/proc/net/nf_conntrack")
    return [int(seconds) for seconds in re.findall(rf"tcp +6 (\d+) {state} ", table)]


def _answer(resolver: socket.socket, reply: socket.socket) -> None:
    while True:
        question, source = resolver.recvfrom(100)
        if question == b"end":
            return
        reply.sendto(b"answer", source)


def _megabits(lab: Lab, sandbox: int, kind: socket.SocketKind, upwards: bool) -> float:
    """What arrives in a second, the first burst left out."""
    if kind is socket.SOCK_STREAM:
        listener = lab.listen(lab.far, "0.0.0.0", PORT)
        client = lab.client(sandbox)
        client.connect(("9.9.9.9", PORT))
        served = lab.stack.enter_context(listener.accept()[0])
    else:
        client, served = lab.client(sandbox, kind), lab.client(lab.far, kind)
        served.bind(("9.9.9.9", PORT))
        client.connect(("9.9.9.9", PORT))
        client.send(b"hello")
        served.connect(served.recvfrom(100)[1])
    source, sink = (client, served) if upwards else (served, client)
    sink.settimeout(PATIENCE)
    over = threading.Event()
    sending = threading.Thread(target=_send, args=(source, over))
    sending.start()
    try:
        begin = time.monotonic()
        while time.monotonic() < begin + 0.3:
            sink.recv(65_536)
        begin, received = time.monotonic(), 0
        while time.monotonic() < begin + 1:
            received += len(sink.recv(65_536))
        return received * 8 / (time.monotonic() - begin) / 1e6
    finally:
        over.set()
        sink.settimeout(0.01)
        while sending.is_alive():
            try:
                sink.recv(65_536)
            except TimeoutError:
                continue
        sending.join()


def _send(source: socket.socket, over: threading.Event) -> None:
    block = bytes(1400)
    while not over.is_set():
        try:
            source.send(block)
        except OSError:  # a queue is full
            time.sleep(0.001)
