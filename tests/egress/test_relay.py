"""Legs on real sockets: nothing is lost, nothing piles up, and ends are told apart."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from sandgate.egress.pipes import MOST
from sandgate.egress.reactor import Reactor
from sandgate.egress.relay import OPTIONS, READ_SIZE, WRITE_BUFFER, Leg, Pause
from sandgate.egress.timeouts import Timeouts


def pair() -> tuple[socket.socket, socket.socket]:
    """The gateway's end and the far end of a TCP connection. Neither blocks, nor takes in much."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for option in OPTIONS:
            listener.setsockopt(*option)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        far.connect(listener.getsockname())
        near, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def until(true: Callable[[], Any], what: str) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    pytest.fail(f"not so: {what}")


class Joint:
    """Two legs that pass on to each other, their far ends, and what was told of them."""

    def __init__(self, reactor: Reactor, *, unseen: bool = True) -> None:
        near_a, self.far_a = pair()
        near_b, self.far_b = pair()
        self.a, self.b = Leg(reactor, near_a), Leg(reactor, near_b)
        self.seen = bytearray()
        self.passed_on: list[Leg] = []
        self.tail = b""
        """To be sent after what has passed."""
        self.lost_legs: list[Leg] = []
        self.fail = False
        for leg in (self.a, self.b):
            leg.owner = self
            leg.start()
        if unseen:
            self.a.pass_to(self.b)
            self.b.pass_to(self.a)

    def close(self) -> None:
        for leg in (self.a, self.b):
            leg.owner = None
            leg.reset()
        self.far_a.close()
        self.far_b.close()

    def other(self, leg: Leg) -> Leg:
        return self.b if leg is self.a else self.a

    def data(self, leg: Leg, data: bytes) -> None:
        if self.fail:
            raise RuntimeError("on purpose")
        self.seen += data

    def ended(self, leg: Leg) -> None:
        self.other(leg).finish()

    def lost(self, leg: Leg) -> None:
        self.lost_legs.append(leg)
        self.other(leg).reset()

    def congested(self, leg: Leg) -> None:
        if leg.full:
            self.other(leg).pause(Pause.PEER_FULL)
        else:
            self.other(leg).resume(Pause.PEER_FULL)

    def passed(self, leg: Leg) -> None:
        self.passed_on.append(leg)
        self.other(leg).write(self.tail)


@pytest.fixture
async def reactor() -> AsyncIterator[Reactor]:
    made = Reactor(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.fixture
async def joint(reactor: Reactor) -> AsyncIterator[Joint]:
    made = Joint(reactor)
    yield made
    made.close()


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


async def receive(sock: socket.socket, *, pause: float = 0.0) -> bytes:
    """All that comes until the end."""
    received = bytearray()
    while data := await asyncio.get_running_loop().sock_recv(sock, 300_000):
        received += data
        await asyncio.sleep(pause)
    return bytes(received)


@pytest.mark.parametrize("pipes_left", [True, False])
@pytest.mark.parametrize("pause", [0.0, 0.01])
async def test_what_passes_in_bulk_both_ways_arrives_whole_and_in_order(
    reactor: Reactor, joint: Joint, pause: float, pipes_left: bool
) -> None:
    if not pipes_left:
        assert all(reactor.pipes.take() for _ in range(MOST))
        assert reactor.pipes.take() is None
    there, back = os.urandom(4_000_000), os.urandom(3_000_001)
    async with asyncio.timeout(20):
        _, _, come_back, come_there = await asyncio.gather(
            send(joint.far_a, there),
            send(joint.far_b, back),
            receive(joint.far_a, pause=pause),
            receive(joint.far_b, pause=pause),
        )
    assert (come_back, come_there) == (back, there)
    assert (joint.a.received, joint.b.sent) == (len(there), len(there))
    assert (joint.b.received, joint.a.sent) == (len(back), len(back))
    assert joint.a.eof_in and joint.a.eof_out and joint.b.eof_in and joint.b.eof_out
    assert not joint.seen and not joint.lost_legs


async def test_small_and_large_pieces_in_any_order_arrive_as_they_were_sent(joint: Joint) -> None:
    chance = random.Random(5)
    sent = bytearray()

    async def talk() -> None:
        for _ in range(120):
            piece = os.urandom(chance.choice((1, 700, READ_SIZE, READ_SIZE + 1, 400_000)))
            sent.extend(piece)
            await asyncio.get_running_loop().sock_sendall(joint.far_a, piece)
            await asyncio.sleep(chance.choice((0, 0, 0.002)))
        joint.far_a.shutdown(socket.SHUT_WR)

    async with asyncio.timeout(20):
        _, received = await asyncio.gather(talk(), receive(joint.far_b))
    assert received == sent


@pytest.mark.parametrize("most", [1, READ_SIZE, 1_000_003])
async def test_no_more_passes_unseen_than_was_said(
    reactor: Reactor, joint: Joint, most: int
) -> None:
    joint.a.pass_to(joint.b, most)
    joint.tail = b"and then this"
    blob, rest = os.urandom(most), b"GET / HTTP/1.1\r\n"
    receiving = asyncio.ensure_future(receive(joint.far_b, pause=0.01))
    await send(joint.far_a, blob + rest)
    async with asyncio.timeout(10):
        assert await receiving == blob + joint.tail
    assert joint.passed_on == [joint.a]
    assert joint.seen == rest


async def test_what_is_sent_after_what_waits_in_a_pipe_comes_after_it(joint: Joint) -> None:
    received, size = b"", 2_000_000
    sending = asyncio.ensure_future(send(joint.far_a, bytes(size)))
    while joint.a.received < size:
        with suppress(BlockingIOError):
            received += joint.far_b.recv(20_000)
        await asyncio.sleep(0.001)
    assert joint.b._pipe is not None
    with suppress(BlockingIOError):
        while True:  # so that there is room, which the leg has not been told of
            received += joint.far_b.recv(1_000_000)
    joint.b.write(b"tail")
    async with asyncio.timeout(5):
        received += await receive(joint.far_b)
        await sending
    assert received == bytes(size) + b"tail"


async def test_a_far_end_that_does_not_read_stops_the_other_side(
    reactor: Reactor, joint: Joint
) -> None:
    loop = asyncio.get_running_loop()
    sending = asyncio.ensure_future(loop.sock_sendall(joint.far_a, bytes(50_000_000)))
    await until(lambda: joint.b.full, "it is full")
    await asyncio.sleep(0.2)
    taken = joint.a.received
    await asyncio.sleep(0.2)
    assert joint.a.received == taken, "nothing more is read"
    assert not joint.b._waiting, "what waits is in the pipe"
    assert not sending.done()
    sending.cancel()
    reset(joint.far_b)
    await until(lambda: joint.lost_legs, "the reset is noticed")
    with pytest.raises(ConnectionResetError):
        await loop.sock_recv(joint.far_a, 1)
    lent = [reactor.pipes.take() for _ in range(MOST)]
    assert all(lent), "a pipe was not given back"
    assert not any(pipe.held for pipe in lent if pipe)


async def test_a_reset_is_noticed_where_neither_far_end_reads(joint: Joint) -> None:
    loop = asyncio.get_running_loop()
    sending = [
        asyncio.ensure_future(loop.sock_sendall(far, bytes(50_000_000)))
        for far in (joint.far_a, joint.far_b)
    ]
    await until(lambda: joint.a.full and joint.b.full, "both are full")
    for task in sending:
        task.cancel()
    await asyncio.sleep(0.05)
    reset(joint.far_b)
    await asyncio.sleep(0.05)
    reset(joint.far_a)
    await until(lambda: joint.lost_legs, "a reset is told")


async def test_reads_do_not_stop_at_urgent_data(joint: Joint) -> None:
    loop = asyncio.get_running_loop()
    joint.a.pause(Pause.HELD)
    joint.far_a.send(b"before")
    joint.far_a.send(b"!", socket.MSG_OOB)
    joint.far_a.send(b"after")
    await asyncio.sleep(0.05)
    joint.a.resume(Pause.HELD)
    received = b""
    async with asyncio.timeout(5):
        while not received.endswith(b"after"):
            received += await loop.sock_recv(joint.far_b, 100)
    assert received.replace(b"!", b"") == b"beforeafter"


async def test_what_came_before_a_reset_is_still_passed_on(reactor: Reactor) -> None:
    joint = Joint(reactor, unseen=False)
    try:
        joint.b.pause(Pause.HELD)
        joint.a.write(b"a request that is not read")
        joint.far_b.send(b"too large")
        await asyncio.sleep(0.05)
        joint.b.write(b"more")
        reset(joint.far_b)
        await asyncio.sleep(0.05)
        joint.b.write(b"cannot be sent")
        joint.b.write(b"nor this")
        joint.b.resume(Pause.HELD)
        await until(lambda: joint.lost_legs, "the reset is told")
        assert joint.seen == b"too large"
        assert joint.lost_legs == [joint.b]
    finally:
        joint.close()


async def test_a_reset_after_the_end_of_input_is_noticed_without_sending(joint: Joint) -> None:
    joint.far_a.shutdown(socket.SHUT_WR)
    await until(lambda: joint.a.eof_in, "the end is told")
    assert not joint.lost_legs
    reset(joint.far_a)
    await until(lambda: joint.lost_legs, "the reset is told")


async def test_what_is_closed_sends_what_waits_and_does_not_wait_for_ever(
    reactor: Reactor,
) -> None:
    reactor.lingering = Timeouts(asyncio.get_running_loop(), 0.3)
    for reads in (True, False):
        joint = Joint(reactor, unseen=False)
        blob = bytes(2_000_000)
        joint.a.write(blob)
        joint.a.owner = None
        await asyncio.sleep(0.1)  # until the far end has taken in what it can
        joint.a.close()
        if reads:
            async with asyncio.timeout(10):
                assert await receive(joint.far_a, pause=0.005) == blob
        else:
            await asyncio.sleep(0.6)
            with pytest.raises(ConnectionResetError):
                await receive(joint.far_a)
        joint.close()


async def test_one_that_fails_is_cut_off_and_costs_the_others_nothing(reactor: Reactor) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    bad, good = Joint(reactor, unseen=False), Joint(reactor)
    try:
        bad.fail = True
        bad.far_a.send(b"x")
        good.far_a.send(b"y")
        async with asyncio.timeout(5):
            assert await loop.sock_recv(good.far_b, 10) == b"y"
            for far in (bad.far_a, bad.far_b):
                with pytest.raises(ConnectionResetError):
                    await loop.sock_recv(far, 1)
        assert bad.lost_legs == [bad.a]
        assert [str(context["exception"]) for context in reported] == ["on purpose"]
    finally:
        bad.close()
        good.close()


async def test_a_leg_holds_back_little_more_than_its_buffer(reactor: Reactor) -> None:
    joint = Joint(reactor)
    try:
        while reactor.pipes.take():
            pass
        loop = asyncio.get_running_loop()
        sending = asyncio.ensure_future(loop.sock_sendall(joint.far_a, bytes(50_000_000)))
        await until(lambda: joint.b.full, "it is full")
        await asyncio.sleep(0.1)
        assert len(joint.b._waiting) <= WRITE_BUFFER + READ_SIZE
        sending.cancel()
    finally:
        joint.close()


async def test_timeouts_come_in_order_and_only_those_that_were_not_stopped() -> None:
    loop = asyncio.get_running_loop()
    timeouts, called = Timeouts(loop, 0.05), list[str]()

    def say(word: str) -> Callable[[], None]:
        return lambda: called.append(word)

    first, second, third = say("first"), say("second"), say("third")
    for callback in (first, second, third):
        timeouts.start(callback)
    timeouts.stop(second)
    timeouts.stop(second)
    timeouts.start(first)  # again: from now on
    await until(lambda: len(called) == 2, "two are due")
    assert called == ["third", "first"]
    began = loop.time()
    timeouts.start(second)
    await until(lambda: len(called) == 3, "the timer is set again")
    assert loop.time() - began > 0.04


async def test_a_timeout_that_fails_does_not_stop_the_others() -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    timeouts, called = Timeouts(loop, 0.02), list[str]()

    def fail() -> None:
        raise RuntimeError("on purpose")

    timeouts.start(fail)
    timeouts.start(lambda: called.append("late"))
    await until(lambda: called, "the other is called")
    assert len(reported) == 1
