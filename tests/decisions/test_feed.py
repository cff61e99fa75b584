"""Decisions on their way to the control process."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandgate.decisions.feed import Feed
from sandgate.decisions.tally import Subject
from sandgate.decisions.wire import Batch, decode
from sandgate.reasons import Reason

SUBJECT = Subject("box", "tcp", "192.0.2.1", 22, None, True, Reason.DEFAULT_ALLOW, None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "decisions.sock"


@pytest.fixture
def feed(path: Path) -> Iterator[Feed]:
    made = Feed("egress", path, lambda: {"connections": 3})
    yield made
    made.close()


@pytest.fixture
def listener(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(str(path))
        yield sock


def heard(listener: socket.socket) -> list[Batch]:
    found = []
    while True:
        try:
            found.append(decode(listener.recv(1 << 20)))
        except BlockingIOError:
            return found


def test_begin_and_end_make_one_decision(feed: Feed, listener: socket.socket) -> None:
    feed.begin(SUBJECT)
    feed.end(SUBJECT, 10, 20, 30, counted=True)
    feed.flush()
    (batch,) = heard(listener)
    ((subject, amount),) = batch.sums
    assert subject == SUBJECT
    assert (amount.count, amount.sent, amount.received, amount.milliseconds) == (1, 10, 20, 30)


def test_while_nobody_listens_decisions_wait(feed: Feed, path: Path) -> None:
    for _ in range(3):
        feed.begin(SUBJECT)
        feed.flush()
    feed.miss("box", 4)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.setblocking(False)
        late.bind(str(path))
        feed.flush()
        feed.flush()
        batches = heard(late)
    assert sum(amount.count for batch in batches for _, amount in batch.sums) == 3
    assert [batch.unrecorded for batch in batches if batch.unrecorded] == [{"box": 4}]


def test_a_listener_that_is_stuck_holds_nothing_up_and_loses_nothing(
    feed: Feed, listener: socket.socket
) -> None:
    total = 3000
    for number in range(total):
        feed.begin(SUBJECT._replace(sandbox_id=f"box{number}"))
        if number % 10 == 0:
            feed.flush()
    for _ in range(total):
        feed.flush()
    seen = {subject for batch in heard(listener) for subject, _ in batch.sums}
    while len(seen) < total:
        feed.flush()
        more = {subject for batch in heard(listener) for subject, _ in batch.sums}
        assert more, f"{total - len(seen)} were lost"
        seen |= more


def test_gauges_are_told_now_and_then(feed: Feed, listener: socket.socket) -> None:
    for _ in range(25):
        feed.flush()
    assert [batch.gauges for batch in heard(listener)] == [{"connections": 3}] * 2
