"""The sandboxes' resolver: answers what each policy lets be asked, over UDP and TCP.

It answers at the address that was asked; the kernel hands it the queries to those that a policy
names as resolvers.

While a policy allows names only, an allowed name is answered with its IPv4 addresses (and the
CNAME chain to them); AAAA, HTTPS and SVCB get an empty answer, because sandboxes have no IPv6 and
HTTPS records would bring the keys for hiding the server name (ECH). All other types are REFUSED:
nothing that a policy of names opens needs them, and TXT and NULL are what tunnels are made of.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.egress.decision_log import DecisionLog, Entry
from sandgate.egress.dns_message import (
    CLASS_IN,
    MAX_UDP,
    MAX_UDP_PLAIN,
    DnsFormatError,
    Query,
    Rcode,
    RecordType,
    build_answer,
    build_format_error,
    is_under,
    parse_query,
    truncated_answer,
)
from sandgate.egress.resolver import Answer, Lookup, ResolutionError
from sandgate.egress.table import Sandbox, SandboxTable
from sandgate.egress.upstreams import DNS_PORT, Upstreams
from sandgate.policy import Mode
from sandgate.reasons import Reason

NODE_TTL = 30
"""Seconds for which the addresses of the node's own names may be kept."""

MAX_QUERIES = 128
"""Queries of one sandbox being answered at once; more get SERVFAIL."""

MAX_TCP = 16
"""DNS connections over TCP one sandbox may have open; more are reset."""

MAX_TCP_TOTAL = 512
TCP_IDLE_SECONDS = 10.0
"""How long a DNS connection may wait for the next query, or for its answer to be taken."""

_BATCH = 64
_LAST_SECONDS = 0.2
"""For what upstream has not answered yet when the gateway ends."""
_MAX_QUERY = 4096
_ORIGINAL = struct.Struct("!2xH4s8x")  # struct sockaddr_in
_PKTINFO = struct.Struct("=4x4s4x")  # struct in_pktinfo, of which the source address is filled in
_NO_DATA = (RecordType.AAAA, RecordType.HTTPS, RecordType.SVCB)
_TRANSFERS = (RecordType.AXFR, RecordType.IXFR)
# Values of <linux/in.h>, which the socket module does not name.
IP_PKTINFO = 8
IP_TRANSPARENT = 19
IP_RECVORIGDSTADDR = 20
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of a query: `reply`, or if that is None what upstream says."""

    reply: bytes | None
    allowed: bool
    reason: Reason
    rule: str | None = None
    reported: bool = False


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Who asked, and whom."""

    client: tuple[str, int]
    server: IPv4Address


class DnsGateway:
    """Answers queries of sandboxes that were sent to port 53 of a resolver."""

    def __init__(
        self,
        *,
        table: SandboxTable,
        upstreams: Upstreams,
        log: DecisionLog,
        ingress: IPv4Address,
        domain: str,
        rate: int,
    ) -> None:
        self._table = table
        self._upstreams = upstreams
        self._log = log
        self._ingress = ingress
        self._domain = domain
        self._rate = rate
        self._tasks: set[asyncio.Task[None]] = set()
        self._tcp_connections = 0
        self._udp: socket.socket | None = None

    # UDP.

    def serve_udp(self, listener: socket.socket) -> None:
        """Start answering datagrams. `listener` is transparent and tells where each was sent to."""
        self._udp = listener
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._read, listener)

    def _read(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, source = sock.recvmsg(_MAX_QUERY, 64)
            except BlockingIOError:
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, IP_RECVORIGDSTADDR):
                    port, packed = _ORIGINAL.unpack(value)
                    if port == DNS_PORT:
                        self._take_datagram(data, _Exchange(source, IPv4Address(packed)))

    def _take_datagram(self, data: bytes, exchange: _Exchange) -> None:
        sandbox = self._table.get(exchange.client[0])
        reply, query = self._parse(data)
        if query is None:
            self._send(reply, exchange)
            return
        server = exchange.server
        verdict = self._admit(sandbox, query, server)
        if verdict.reply is not None or sandbox is None:
            self._report(sandbox, query, server, verdict)
            self._send(verdict.reply, exchange)
        elif sandbox.dns_queries >= MAX_QUERIES:
            self._send(self._too_many(sandbox, query, server), exchange)
        else:
            task = asyncio.get_running_loop().create_task(self._relay(sandbox, query, exchange))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, sandbox: Sandbox, query: Query, exchange: _Exchange) -> None:
        reply = await self._answer(sandbox, query, exchange.server)
        size = MAX_UDP_PLAIN if query.udp_size is None else min(query.udp_size, MAX_UDP)
        self._send(reply if len(reply) <= size else truncated_answer(query), exchange)

    def _send(self, reply: bytes | None, exchange: _Exchange) -> None:
        if reply is not None and self._udp is not None:
            # From the address that was asked, which is not ours.
            from_server = _PKTINFO.pack(exchange.server.packed)
            ancillary = [(socket.IPPROTO_IP, IP_PKTINFO, from_server)]
            with suppress(OSError):  # a datagram may get lost; the client asks again
                self._udp.sendmsg([reply], ancillary, 0, exchange.client)

    # TCP.

    async def serve_tcp(self, listener: socket.socket) -> asyncio.Server:
        """Start answering connections."""
        return await asyncio.start_server(self._connection, sock=listener, limit=_MAX_QUERY)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, local = (writer.get_extra_info(key) for key in ("peername", "sockname"))
        sandbox = self._table.get(peer[0]) if peer else None
        if (
            sandbox is None
            or local is None
            or local[1] != DNS_PORT
            or sandbox.dns_connections >= MAX_TCP
            or self._tcp_connections >= MAX_TCP_TOTAL
        ):
            _reset(writer)
            return
        server = IPv4Address(local[0])
        sandbox.dns_connections += 1
        self._tcp_connections += 1
        try:
            while True:
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    data = await reader.readexactly(size)
                if sandbox.removed:
                    break
                reply, query = self._parse(data)
                if query is not None:
                    verdict = self._admit(sandbox, query, server)
                    if verdict.reply is None:
                        reply = await self._answer(sandbox, query, server)
                    else:
                        self._report(sandbox, query, server, verdict)
                        reply = verdict.reply
                if reply is None:
                    break
                writer.write(len(reply).to_bytes(2, "big") + reply)
                async with asyncio.timeout(TCP_IDLE_SECONDS):
                    await writer.drain()
                if query is None:
                    break  # who sends what is no query gets one answer
        except (OSError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            pass
        finally:
            sandbox.dns_connections -= 1
            self._tcp_connections -= 1
            writer.close()

    async def close(self) -> None:
        """Answer the datagrams that have come, as far as that takes a moment, and stop.

        Who gets no answer asks again after seconds.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LAST_SECONDS
        if self._udp is not None:
            self._read(self._udp)
        while self._tasks and (left := deadline - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        if self._udp is not None:
            loop.remove_reader(self._udp.fileno())
            self._udp.close()  # from here on the kernel refuses, until the next gateway is there
            self._udp = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Both.

    @staticmethod
    def _parse(data: bytes) -> tuple[bytes | None, Query | None]:
        """An error to send back (or nothing at all), or the query."""
        try:
            return None, parse_query(data)
        except DnsFormatError:
            return build_format_error(data), None

    def _admit(self, sandbox: Sandbox | None, query: Query, server: IPv4Address) -> _Verdict:
        """Judge a query that came in just now."""
        now = asyncio.get_running_loop().time()
        if sandbox is not None and not sandbox.dns_rate.take(now, self._rate):
            return self._refused(query, Reason.LIMIT_DNS_RATE)
        return self._judge(sandbox, query, server)

    def _judge(self, sandbox: Sandbox | None, query: Query, server: IPv4Address) -> _Verdict:
        question = query.question
        if sandbox is None or sandbox.removed:
            return self._refused(query, Reason.UNKNOWN_SANDBOX)
        name = question.name
        decision = sandbox.policy.decide_query(server, name)
        reason = decision.reason
        if not decision.allowed and reason == Reason.NO_RESOLVER:
            return self._refused(query, reason)
        if not query.supported:
            reply = build_answer(query, Rcode.NOTIMP)
            return _Verdict(reply, allowed=False, reason=Reason.RECORD_TYPE)
        if question.class_ != CLASS_IN or question.type in _TRANSFERS:
            return self._refused(query, Reason.RECORD_TYPE)
        if not decision.allowed:
            return self._refused(query, reason)
        reported = decision.reported
        if reason == Reason.ALLOWED_NAME and question.type not in (RecordType.A, *_NO_DATA):
            if sandbox.policy.mode is Mode.ENFORCE:
                return self._refused(query, Reason.RECORD_TYPE)
            reason, reported = Reason.RECORD_TYPE, True
        answer = None
        if name is not None and is_under(name, self._domain):
            addresses = [self._ingress] if question.type == RecordType.A else []
            answer = build_answer(query, Rcode.NOERROR, addresses, NODE_TTL)
        elif question.type in _NO_DATA:
            answer = build_answer(query, Rcode.NOERROR)
        return _Verdict(answer, allowed=True, reason=reason, rule=decision.rule, reported=reported)

    @staticmethod
    def _refused(query: Query, reason: Reason) -> _Verdict:
        return _Verdict(build_answer(query, Rcode.REFUSED), allowed=False, reason=reason)

    def _too_many(self, sandbox: Sandbox, query: Query, server: IPv4Address) -> bytes:
        """The answer to a query that would be one too many at a time."""
        verdict = _Verdict(None, allowed=False, reason=Reason.LIMIT_DNS_RATE)
        self._report(sandbox, query, server, verdict)
        return build_answer(query, Rcode.SERVFAIL)

    async def _answer(self, sandbox: Sandbox, query: Query, server: IPv4Address) -> bytes:
        """Ask upstream on behalf of a query that may be asked."""
        loop = asyncio.get_running_loop()
        if sandbox.dns_queries >= MAX_QUERIES:
            return self._too_many(sandbox, query, server)
        sandbox.dns_queries += 1
        try:
            lookup = Lookup(query.question, query.udp_size is not None, query.dnssec)
            answer = await self._upstreams.of(sandbox.policy.upstream).ask(lookup)
            reply = answer.response.for_client(query, int(loop.time() - answer.received_at))
            _pin(sandbox, query, answer, loop.time())
        except ResolutionError:
            reply = build_answer(query, Rcode.SERVFAIL)
        finally:
            sandbox.dns_queries -= 1
        verdict = self._judge(sandbox, query, server)  # the policy may have changed meanwhile
        self._report(sandbox, query, server, verdict)
        return reply if verdict.reply is None else verdict.reply

    def _report(
        self, sandbox: Sandbox | None, query: Query, server: IPv4Address, verdict: _Verdict
    ) -> None:
        self._log.write(
            Entry(
                sandbox_id=sandbox.sandbox_id if sandbox else None,
                protocol="dns",
                destination=str(server),
                port=DNS_PORT,
                allowed=verdict.allowed,
                reason=verdict.reason,
                name=query.question.text,
                rule=verdict.rule,
                reported=verdict.reported,
            ),
            sandbox.lines if sandbox else None,
        )


def _pin(sandbox: Sandbox, query: Query, answer: Answer, now: float) -> None:
    """Remember which addresses the sandbox is given for the name."""
    name, response = query.question.name, answer.response
    if name is not None and query.question.type == RecordType.A:
        addresses, _ = response.follow(query.question.key)
        ttl = (response.ttl or 0) - (now - answer.received_at)
        sandbox.pins.add(name, addresses, ttl, now)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a TCP reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
