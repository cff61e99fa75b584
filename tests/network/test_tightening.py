"""A tighter policy ends what is open, also what was opened when nothing had been for long."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

from network.netlab import OPEN, Lab, is_silent, tcp_outcome
from sandgate.network import sockdiag, tightening
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.tightening import Cutter, Inside, opened_in
from sandgate.policy import EgressPolicy, Mode, parse_policy

SLOT = 4
ONE, OTHER, THIRD, NEVER = "1.1.1.1", "9.9.9.9", "9.9.9.10", "9.9.9.11"

_CHANGES = 400
_FLOOD = """
import select, socket, sys
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.connect((sys.argv[1], 7))
refused = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100):
        try:
            client.send(b"")
        except OSError:
            refused += 1
print(refused)
"""
"""Sends datagrams until its input ends; says how often it was told that it must not."""


def only(*addresses: str) -> EgressPolicy:
    return parse_policy(addresses, ["0.0.0.0/0"])


@dataclass
class Box:
    """A sandbox with a process in it."""

    lab: Lab
    namespace: int
    process: subprocess.Popen[bytes]
    pidfd: int

    def change(self, policy: EgressPolicy) -> None:
        with inside(self.lab.host):
            self.lab.network.change(SLOT, self.process.pid, self.pidfd, policy)

    def open(self, address: str) -> socket.socket:
        client = self.lab.client(self.namespace)
        client.connect((address, 7))
        return client


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def box_in(lab: Lab, stack: ExitStack) -> Box:
    namespace = lab.sandbox(SLOT, EgressPolicy())
    with inside(namespace):
        process = subprocess.Popen(["sleep", "120"])
    stack.callback(process.wait)
    stack.callback(process.kill)
    pidfd = os.pidfd_open(process.pid)
    stack.callback(os.close, pidfd)
    return Box(lab, namespace, process, pidfd)


@pytest.fixture
def box(lab: Lab, stack: ExitStack) -> Box:
    """The far side answers on port 7 of every address."""
    lab.listen(lab.far, "0.0.0.0", 7)
    return box_in(lab, stack)


def was_cut(client: socket.socket) -> bool:
    """Was it reset? The call that did it has returned."""
    error = client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert error in (0, errno.ECONNABORTED), os.strerror(error)
    return error != 0


def test_what_is_opened_after_a_quiet_time_is_found(box: Box) -> None:
    box.change(only(ONE, OTHER))
    first = box.open(OTHER)
    box.change(only(ONE))
    assert was_cut(first)
    first.close()
    for _ in range(3):  # nothing is open, and that is remembered
        box.change(only(OTHER))
        box.change(only(ONE))
    second = box.open(ONE)
    box.change(only(OTHER))
    assert was_cut(second)


def test_what_stays_allowed_is_looked_at_again_by_the_next_change(box: Box) -> None:
    box.change(only(ONE, OTHER))
    kept = box.open(ONE)
    box.change(only(ONE))
    box.change(only(ONE, THIRD))
    assert not was_cut(kept)
    box.change(only(THIRD))
    assert was_cut(kept)


def test_what_was_let_pass_for_a_report_is_cut_when_it_is_enforced(box: Box) -> None:
    box.change(parse_policy([ONE], ["0.0.0.0/0"], mode=Mode.REPORT))
    kept, reported = box.open(ONE), box.open(OTHER)
    box.change(only(ONE))
    assert not was_cut(kept)
    assert was_cut(reported)


def test_the_next_sandbox_in_a_slot_is_not_taken_for_the_last(box: Box, stack: ExitStack) -> None:
    """Both have opened one connection; of the first none was left open."""
    box.change(only(ONE))
    first = box.open(ONE)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.close()
    box.change(only(OTHER))
    box.process.kill()
    box.process.wait()
    for held in box.lab.clients:  # they keep the namespace alive
        held.close()
    box.lab.end(SLOT)
    following = box_in(box.lab, stack)
    client = following.open(ONE)
    assert opened_in(following.process.pid) == 1
    following.change(only(OTHER))
    assert was_cut(client)


def test_what_is_opened_while_the_rules_change_is_found(box: Box) -> None:
    opened: list[socket.socket] = []
    host = box.lab.host
    with inside(host), closing(NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)) as diag:
        sandbox = Inside(SLOT, box.process.pid, box.pidfd, box.lab.network.address(SLOT))
        Cutter().around(sandbox, diag, lambda _: False, lambda: opened.append(box.open(ONE)))
    assert was_cut(opened[0])


def test_a_wider_policy_looks_for_nothing(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.change(only(ONE))
    kept = box.open(ONE)
    looked: list[int] = []
    monkeypatch.setattr(tightening, "opened_in", looked.append)
    box.change(only(ONE, OTHER))
    box.change(EgressPolicy())
    assert not looked and not was_cut(kept)
    assert tcp_outcome(box.namespace, THIRD, 7) == OPEN


def test_no_packet_is_judged_by_less_or_more_than_one_of_two_policies(
    box: Box, stack: ExitStack
) -> None:
    _, arrived = (box.lab.receive(box.lab.far, address, 7) for address in (ONE, NEVER))
    box.change(only(ONE, OTHER))
    floods = []
    for address in (ONE, NEVER):
        with inside(box.namespace):
            flood = subprocess.Popen(
                [sys.executable, "-c", _FLOOD, address],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        stack.callback(flood.wait)
        stack.callback(flood.kill)
        assert flood.stdout is not None and flood.stdout.readline() == "ready\n"
        floods.append(flood)
    for index in range(_CHANGES):
        box.change(only(ONE, (OTHER, THIRD)[index % 2]))
    allowed, never = (int(flood.communicate(timeout=30)[0]) for flood in floods)
    assert allowed == 0 and never > 0
    assert is_silent(arrived)
