from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

import dns.message
import dns.rcode
import dns.rrset
import pytest

from sandgate.egress.dns_message import Question, Rcode, RecordType
from sandgate.egress.resolver import Lookup, ResolutionError, Resolver

Answer = Callable[[dns.message.Message], list[bytes]]
"""What a server sends, as datagrams, in reply to a query."""


class Upstream(asyncio.DatagramProtocol):
    """A server on loopback, over UDP and TCP on one port."""

    def __init__(self, udp: Answer, tcp: Answer | None) -> None:
        self.asked: list[str] = []
        self.ports: set[int] = set()
        self.ids: set[int] = set()
        self._udp = udp
        self._tcp = tcp
        self.address = ("127.0.0.1", 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.address = transport.get_extra_info("sockname")

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:
        query = dns.message.from_wire(data)
        self.asked.append(query.question[0].to_text())
        self.ports.add(int(addr[1]))
        self.ids.add(query.id)
        for reply in self._udp(query):
            self._transport.sendto(reply, addr)

    async def stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = int.from_bytes(await reader.readexactly(2), "big")
        query = dns.message.from_wire(await reader.readexactly(size))
        assert self._tcp is not None
        for reply in self._tcp(query):
            writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()


@asynccontextmanager
async def upstream(udp: Answer, tcp: Answer | None = None) -> AsyncIterator[Upstream]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: Upstream(udp, tcp), local_addr=("127.0.0.1", 0)
    )
    stream = await asyncio.start_server(server.stream, *server.address)
    try:
        yield server
    finally:
        transport.close()
        stream.close()
        await stream.wait_closed()


@asynccontextmanager
async def resolver(*servers: Upstream) -> AsyncIterator[Resolver]:
    made = Resolver([server.address for server in servers])
    try:
        yield made
    finally:
        await made.close()


def records(*lines: str, ttl: int = 60) -> Answer:
    """Answers with these records (`owner type data`)."""

    def answer(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        for line in lines:
            owner, kind, data = line.split(" ", 2)
            response.answer.append(dns.rrset.from_text(owner, ttl, "IN", kind, data))
        return [response.to_wire()]

    return answer


def code(rcode: int) -> Answer:
    def answer(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(dns.rcode.Rcode(rcode))
        return [response.to_wire()]

    return answer


def silence(query: dns.message.Message) -> list[bytes]:
    return []


def truncated(query: dns.message.Message) -> list[bytes]:
    response = dns.message.make_response(query)
    response.flags |= 0x0200
    return [response.to_wire()]


GOOD = records("good.test. A 192.0.2.1", "good.test. A 192.0.2.2")
ADDRESSES = [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")]


async def test_a_name_is_resolved_once_while_its_answer_is_good() -> None:
    async with upstream(GOOD) as server, resolver(server) as resolving:
        assert sorted(await resolving.addresses("good.test")) == ADDRESSES
        assert sorted(await resolving.addresses("good.test")) == ADDRESSES
        assert len(server.asked) == 1


@pytest.mark.parametrize("ttls", [(100, 50), (50, 100)])
async def test_where_a_name_leads_is_known_for_as_long_as_all_answers_on_the_way_are_good(
    ttls: tuple[int, int],
) -> None:
    def answer(query: dns.message.Message) -> list[bytes]:
        if query.question[0].name.to_text() == "good.test.":
            return records("good.test. CNAME hop.test.", ttl=ttls[0])(query)
        return records("hop.test. A 192.0.2.1", ttl=ttls[1])(query)

    async with upstream(answer) as server, resolver(server) as made:
        now = asyncio.get_running_loop().time()
        assert made.known("good.test", now) is None
        found = await made.addresses("good.test")
        assert made.known("good.test", now) == found == [IPv4Address("192.0.2.1")]
        assert made.known("good.test", now + 49) == found
        assert made.known("good.test", now + 60) is None
        assert made.known("good.test", now) is None


async def test_no_more_names_are_known_than_answers_are_kept() -> None:
    def answer(query: dns.message.Message) -> list[bytes]:
        return records(f"{query.question[0].name} A 192.0.2.1")(query)

    async with upstream(answer) as server:
        made = Resolver([server.address], cache_entries=3)
        for name in ("a.test", "b.test", "c.test", "d.test"):
            await made.addresses(name)
        now = asyncio.get_running_loop().time()
        assert [name for name in "abcd" if made.known(f"{name}.test", now)] == ["b", "c", "d"]
        await made.close()


async def test_equal_questions_in_flight_are_asked_once_and_survive_a_cancelled_asker() -> None:
    async with upstream(GOOD) as server, resolver(server) as resolving:
        asking = [asyncio.create_task(resolving.addresses("good.test")) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()
        results = await asyncio.gather(*asking[1:])
        assert all(sorted(result) == ADDRESSES for result in results)
        assert len(server.asked) == 1


async def test_an_answer_without_life_time_is_asked_for_again_from_another_port() -> None:
    answer = records("good.test. A 192.0.2.1", ttl=0)
    async with upstream(answer) as server, resolver(server) as resolving:
        for _ in range(20):
            await resolving.addresses("good.test")
        assert len(server.asked) == 20
        assert len(server.ids) > 10
        assert len(server.ports) > 10


async def test_forged_answers_are_ignored_until_the_real_one_comes() -> None:
    def answer(query: dns.message.Message) -> list[bytes]:
        (real,) = GOOD(query)
        other_id = bytes([real[0] ^ 1]) + real[1:]
        other_name = real.replace(b"\4good", b"\4evil")
        return [b"junk", other_id, other_name, real[:-3], query.to_wire(), real]

    async with upstream(answer) as server, resolver(server) as resolving:
        assert sorted(await resolving.addresses("good.test")) == ADDRESSES


async def test_a_truncated_answer_is_fetched_over_tcp() -> None:
    async with upstream(truncated, GOOD) as server, resolver(server) as resolving:
        assert sorted(await resolving.addresses("good.test")) == ADDRESSES


async def test_the_next_server_is_asked_when_one_fails_or_is_silent() -> None:
    async with upstream(code(2)) as failing, upstream(silence) as silent, upstream(GOOD) as good:
        async with resolver(failing, silent, good) as resolving:
            assert sorted(await resolving.addresses("good.test")) == ADDRESSES
        assert failing.asked
        assert silent.asked


async def test_aliases_are_followed_within_and_across_answers() -> None:
    def answer(query: dns.message.Message) -> list[bytes]:
        if query.question[0].name.to_text() == "good.test.":
            return GOOD(query)
        return records("a.test. CNAME b.test.", "b.test. CNAME good.test.")(query)

    async with upstream(answer) as server, resolver(server) as resolving:
        assert sorted(await resolving.addresses("a.test")) == ADDRESSES


@pytest.mark.parametrize(
    "answer",
    [
        code(3),
        code(2),
        records(),
        records("good.test. CNAME good.test."),
        records("a.test. A 192.0.2.1"),
        truncated,
    ],
)
async def test_a_name_without_addresses_is_an_error(answer: Answer) -> None:
    async with upstream(answer, truncated) as server, resolver(server) as resolving:
        with pytest.raises(ResolutionError):
            await resolving.addresses("good.test")


async def test_aliases_that_never_end_are_given_up() -> None:
    def answer(query: dns.message.Message) -> list[bytes]:
        name = query.question[0].name.to_text()
        return records(f"{name} CNAME x{name}")(query)

    async with upstream(answer) as server, resolver(server) as resolving:
        with pytest.raises(ResolutionError):
            await resolving.addresses("good.test")
        assert len(server.asked) < 20


async def test_a_dead_server_is_noticed_at_once_and_silence_in_time() -> None:
    loop = asyncio.get_running_loop()
    async with upstream(silence) as server:
        gone = server.address
    dead = Resolver([gone])
    start = loop.time()
    with pytest.raises(ResolutionError):
        await dead.addresses("good.test")
    assert loop.time() - start < 0.5
    async with upstream(silence) as server, resolver(server) as resolving:
        start = loop.time()
        with pytest.raises(ResolutionError):
            await resolving.addresses("good.test")
        assert 2.5 < loop.time() - start < 5.5


async def test_a_negative_answer_is_passed_on_with_its_code() -> None:
    async with upstream(code(3)) as server, resolver(server) as resolving:
        lookup = Lookup(Question.of("no.test", RecordType.A))
        assert (await resolving.ask(lookup)).response.rcode == Rcode.NXDOMAIN
        await resolving.ask(lookup)
        assert len(server.asked) == 1


def test_without_servers_there_is_no_resolver() -> None:
    with pytest.raises(ValueError, match="upstream_dns"):
        Resolver([])
