"""Dialling on real sockets: who is tried when, what is told, and that nothing is left open."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandgate.decisions.feed import Feed
from sandgate.egress.decision_log import DecisionLog
from sandgate.egress.dial import Dialer, DialError
from sandgate.egress.own_addresses import OwnAddresses
from sandgate.egress.proxy import Proxy
from sandgate.egress.reactor import Reactor
from sandgate.egress.relay import Leg
from sandgate.egress.session import NAME_SECONDS, SessionContext
from sandgate.egress.table import SandboxTable
from sandgate.egress.timeouts import Timeouts
from sandgate.egress.upstreams import Upstreams
from sandgate.guard import AddressGuard
from sandgate.reasons import Reason

GOOD, SILENT, REFUSING, OWN = (IPv4Address(f"127.0.53.{n}") for n in (1, 2, 3, 4))
PORT = 5353
NAME = "name.test"


class NoneButOne(OwnAddresses):
    """The machine's own addresses: :data:`OWN` is one from the second look on."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def current(self) -> frozenset[IPv4Address]:
        self.looks += 1
        return frozenset({OWN} if self.looks > 1 else ())


class Place:
    """A dialer, and servers on loopback: one that answers, one whose backlog is full."""

    def __init__(self, loop: asyncio.AbstractEventLoop, stack: ExitStack) -> None:
        guard = AddressGuard(IPv4Network("198.18.0.0/16"), (IPv4Network("127.0.0.0/8"),))
        own = NoneButOne()
        stack.callback(own.close)
        self.upstreams = Upstreams([IPv4Address("127.0.0.1")], guard, own)
        self.reactor = Reactor(loop)
        stack.callback(self.reactor.close)
        self.dialer = Dialer(
            self.reactor,
            loop,
            upstreams=self.upstreams,
            guard=guard,
            own=own,
            ingress=(IPv4Address("198.18.0.1"), 443),
            domain="sandgate.localhost",
        )
        for address, backlog in ((GOOD, 16), (SILENT, 0)):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(address), PORT))
            listener.listen(backlog)
        filler = stack.enter_context(socket.create_connection((str(SILENT), PORT)))
        assert filler.getpeername()
        self.told: list[Leg | DialError] = []

    def know(self, *addresses: IPv4Address) -> None:
        """The name leads to these."""
        self.upstreams._node._know(NAME, float("inf"), list(addresses))

    def told_error(self) -> DialError:
        [error] = self.told
        assert isinstance(error, DialError)
        return error

    async def wait(self) -> None:
        for _ in range(1000):
            if self.told:
                return
            await asyncio.sleep(0.005)
        pytest.fail("nothing was told")


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with ExitStack() as stack:
        made = Place(asyncio.get_running_loop(), stack)
        before = descriptors()
        yield made
        for leg in made.told:
            if isinstance(leg, Leg):
                leg.reset()
        assert descriptors() == before, "a socket was left open"
        assert not made.reactor._handlers
        dialer = made.dialer
        assert not (dialer.attempt._due or dialer.total._due or dialer.stagger._due)


@pytest.mark.parametrize(
    "first", [(), (SILENT,), (REFUSING,), (REFUSING, SILENT, REFUSING), (SILENT, SILENT)]
)
async def test_the_first_address_that_answers_is_connected_to(
    place: Place, first: tuple[IPv4Address, ...]
) -> None:
    place.know(*first, GOOD)
    place.dialer.by_name(NAME, PORT, None, place.told.append)
    await place.wait()
    await asyncio.sleep(0.05)
    [leg] = place.told
    assert isinstance(leg, Leg)
    assert leg.address == GOOD


async def test_one_that_refuses_costs_no_time(place: Place) -> None:
    place.know(*[REFUSING] * 20, GOOD)
    place.dialer.stagger = Timeouts(place.dialer.loop, 60)
    place.dialer.by_name(NAME, PORT, None, place.told.append)
    await place.wait()
    assert isinstance(place.told[0], Leg)


async def test_where_nobody_answers_that_is_told_once(place: Place) -> None:
    place.know(REFUSING, REFUSING)
    place.dialer.by_name(NAME, PORT, None, place.told.append)
    await place.wait()
    assert place.told_error().reason is Reason.UNREACHABLE
    assert "refused" in place.told_error().detail


@pytest.mark.parametrize("limit", ["attempt", "total"])
async def test_nobody_is_waited_for_for_ever(place: Place, limit: str) -> None:
    setattr(place.dialer, limit, Timeouts(place.dialer.loop, 0.1))
    place.know(SILENT)
    place.dialer.by_name(NAME, PORT, None, place.told.append)
    await place.wait()
    assert place.told_error().reason is Reason.UNREACHABLE
    assert place.told_error().detail == "no answer in time"


async def test_what_is_given_up_is_closed_and_nothing_is_told(place: Place) -> None:
    place.know(SILENT, SILENT)
    place.dialer.stagger = Timeouts(place.dialer.loop, 0.02)
    dialling = place.dialer.by_name(NAME, PORT, None, place.told.append)
    await asyncio.sleep(0.1)
    dialling.cancel()
    dialling.cancel()
    await asyncio.sleep(0.1)
    assert not place.told


async def test_a_search_for_addresses_is_given_up_too(place: Place) -> None:
    dialling = place.dialer.by_name("unknown.test", PORT, None, place.told.append)
    await asyncio.sleep(0)
    dialling.cancel()
    await asyncio.sleep(0.05)
    assert not place.told
    await place.upstreams.close()


async def test_an_address_is_judged_again_at_the_moment_of_dialling(place: Place) -> None:
    place.know(OWN)
    place.dialer.by_name(NAME, PORT, None, place.told.append)
    assert place.told_error().detail == f"{OWN} is out of reach"
    place.told.clear()
    place.dialer.by_address(OWN, PORT, place.told.append)
    assert place.told_error().reason is Reason.ALWAYS_DENIED


class Full(socket.socket):
    """A listener that has no descriptor left, at first."""

    failures = 1

    def accept(self) -> tuple[socket.socket, object]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed("egress", tmp_path / "decisions.sock")
    yield made
    made.close()


async def test_without_descriptors_accepting_pauses_and_goes_on(
    place: Place, feed: Feed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    loop = asyncio.get_running_loop()
    log = DecisionLog(lambda: 0.0, feed)
    names = Timeouts(loop, NAME_SECONDS)
    context = SessionContext(SandboxTable(), place.dialer, log, loop, names)
    listener = Full()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    listener.setblocking(False)
    proxy = Proxy(context, listener, 10, 10)
    proxy.start()
    try:
        with socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, listener.getsockname())
            async with asyncio.timeout(5):
                with pytest.raises(ConnectionResetError):  # no sandbox: it was accepted at last
                    await loop.sock_recv(client, 1)
    finally:
        proxy.stop()
    assert len(caplog.messages) == 1
    assert "Too many open files" in caplog.messages[0]
