"""A stub resolver for the DNS gateway and for dialling, with a bounded cache of answers."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.egress.dns_message import (
    DnsFormatError,
    Question,
    Rcode,
    RecordType,
    Response,
    build_query,
    parse_response,
)

ATTEMPT_SECONDS = (1.0, 2.0)
"""How long a server may take, in the first and in the second round over all servers."""

TOTAL_SECONDS = 5.0
"""Longest time one question may take."""

MAX_TTL = 300
"""Seconds after which an answer is asked for again, whatever its time to live."""

NEGATIVE_TTL = 5
"""Seconds for which 'no such name' and 'no such data' are kept."""

CACHE_ENTRIES = 4096
MAX_CACHED_SIZE = 4096
"""Larger answers (bytes) are not kept."""

MAX_IN_FLIGHT = 1024
"""Most questions being asked at once; each takes a socket."""

_MAX_RESTARTS = 8


class ResolutionError(OSError):
    """No server gave a usable answer in time."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is asked of upstream. Equal look-ups share one answer."""

    question: Question
    edns: bool = False
    dnssec: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A response and when it came, on the event loop's clock."""

    response: Response
    received_at: float


class Resolver:
    """Asks `servers` (address, port) in turn. Belongs to one event loop."""

    __slots__ = ("_cache", "_entries", "_in_flight", "_known", "_servers")

    def __init__(
        self, servers: Sequence[tuple[str, int]], cache_entries: int = CACHE_ENTRIES
    ) -> None:
        if not servers:
            raise ValueError("upstream_dns: at least one server is needed")
        self._servers = tuple(servers)
        self._entries = cache_entries
        self._cache: OrderedDict[Lookup, tuple[float, Answer]] = OrderedDict()
        self._known: OrderedDict[str, tuple[float, list[IPv4Address]]] = OrderedDict()
        self._in_flight: dict[Lookup, asyncio.Task[Answer]] = {}

    async def ask(self, lookup: Lookup) -> Answer:
        """The answer to `lookup`, whatever its rcode. Raises :class:`ResolutionError`."""
        loop = asyncio.get_running_loop()
        cached = self._cache.get(lookup)
        if cached is not None:
            expires, answer = cached
            if loop.time() < expires:
                self._cache.move_to_end(lookup)
                return answer
            del self._cache[lookup]
        task = self._in_flight.get(lookup)
        if task is None:
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                raise ResolutionError("too many questions are being asked")
            task = loop.create_task(self._fetch(lookup))
            self._in_flight[lookup] = task
            task.add_done_callback(lambda done: self._finish(lookup, done))
        # Shielded: one asker going away must not take the answer from the others.
        return await asyncio.shield(task)

    def known(self, name: str, now: float) -> list[IPv4Address] | None:
        """What :meth:`addresses` said of `name`, if that is still good at `now` (the loop's)."""
        known = self._known.get(name)
        if known is None:
            return None
        expires, found = known
        if now < expires:
            return found
        del self._known[name]
        return None

    async def addresses(self, name: str) -> list[IPv4Address]:
        """The IPv4 addresses of a normalised name, CNAMEs followed.

        Raises :class:`ResolutionError` if it has none or nobody answers.
        """
        question = Question.of(name, RecordType.A)
        expires = float("inf")
        for _ in range(_MAX_RESTARTS):
            answer = await self.ask(Lookup(question))
            response = answer.response
            if response.rcode != Rcode.NOERROR:
                raise ResolutionError(f"{name}: upstream answered with code {response.rcode}")
            expires = min(expires, answer.received_at + _lifetime(response))
            found, end = response.follow(question.key)
            if found:
                found = list(dict.fromkeys(found))
                self._know(name, expires, found)
                return found
            if end == question.key:
                break
            question = Question(end, RecordType.A)
        raise ResolutionError(f"{name} has no IPv4 address")

    def _know(self, name: str, expires: float, found: list[IPv4Address]) -> None:
        self._known[name] = (expires, found)
        self._known.move_to_end(name)
        if len(self._known) > self._entries:
            self._known.popitem(last=False)

    async def close(self) -> None:
        """Stop all questions."""
        tasks = list(self._in_flight.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _finish(self, lookup: Lookup, task: asyncio.Task[Answer]) -> None:
        del self._in_flight[lookup]
        if task.cancelled() or task.exception() is not None:
            return
        answer = task.result()
        response = answer.response
        seconds = _lifetime(response)
        if seconds > 0 and len(response.wire) <= MAX_CACHED_SIZE:
            self._cache[lookup] = (answer.received_at + seconds, answer)
            self._cache.move_to_end(lookup)
            if len(self._cache) > self._entries:
                self._cache.popitem(last=False)

    async def _fetch(self, lookup: Lookup) -> Answer:
        loop = asyncio.get_running_loop()
        last: Response | None = None
        try:
            async with asyncio.timeout(TOTAL_SECONDS):
                for seconds in ATTEMPT_SECONDS:
                    for server in self._servers:
                        response = await _ask_server(server, lookup, seconds)
                        if response is None:
                            continue
                        if response.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN):
                            return Answer(response, loop.time())
                        last = response
                    if last is not None:
                        break
        except TimeoutError:
            pass
        if last is None:
            raise ResolutionError("no upstream server answered in time")
        return Answer(last, loop.time())


def _lifetime(response: Response) -> int:
    """Seconds for which `response` may be kept."""
    if response.rcode not in (Rcode.NOERROR, Rcode.NXDOMAIN):
        return 0
    if response.rcode == Rcode.NXDOMAIN or not response.records:
        return min(NEGATIVE_TTL, NEGATIVE_TTL if response.ttl is None else response.ttl)
    return min(MAX_TTL, response.ttl or 0)


async def _ask_server(server: tuple[str, int], lookup: Lookup, seconds: float) -> Response | None:
    """One attempt; None if the server did not answer, or not sensibly."""
    try:
        async with asyncio.timeout(seconds):
            response = await _ask_udp(server, lookup)
            if response.truncated:
                response = await _ask_tcp(server, lookup)
            return response
    except (OSError, DnsFormatError, asyncio.IncompleteReadError):
        return None


async def _ask_udp(server: tuple[str, int], lookup: Lookup) -> Response:
    loop = asyncio.get_running_loop()
    id_ = secrets.randbits(16)
    # A socket of its own, connected: the kernel picks a random source port for every question
    # and drops what comes from anywhere but the server.
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.connect(server)
        transport, protocol = await loop.create_datagram_endpoint(
            lambda: _Exchange(id_, lookup.question), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    try:
        # Not transport.sendto(): asyncio's wants an address, which a connected socket refuses.
        sock.send(_build(id_, lookup))
        return await protocol.response
    finally:
        transport.abort()


async def _ask_tcp(server: tuple[str, int], lookup: Lookup) -> Response:
    id_ = secrets.randbits(16)
    reader, writer = await asyncio.open_connection(*server)
    try:
        message = _build(id_, lookup)
        writer.write(len(message).to_bytes(2, "big") + message)
        size = int.from_bytes(await reader.readexactly(2), "big")
        response = parse_response(await reader.readexactly(size), id_, lookup.question)
        if response.truncated:
            raise DnsFormatError("truncated over TCP")
        return response
    finally:
        writer.transport.abort()


def _build(id_: int, lookup: Lookup) -> bytes:
    return build_query(id_, lookup.question, edns=lookup.edns, dnssec=lookup.dnssec)


class _Exchange(asyncio.DatagramProtocol):
    """Waits for the datagram that answers the question; ignores all others."""

    def __init__(self, id_: int, question: Question) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._id = id_
        self._question = question

    def datagram_received(self, data: bytes, addr: tuple[str | int, int]) -> None:
        if self.response.done():
            return
        try:
            self.response.set_result(parse_response(data, self._id, self._question))
        except DnsFormatError:
            return  # perhaps forged: the real answer may still come

    def error_received(self, exc: Exception) -> None:
        if not self.response.done():
            self.response.set_exception(exc)
