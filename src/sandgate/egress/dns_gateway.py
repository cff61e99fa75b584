"""The sandboxes' resolver: answers what each policy lets be asked, over UDP and TCP.

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
from sandgate.egress.resolver import Lookup, ResolutionError, Resolver
from sandgate.egress.table import Sandbox, SandboxTable
from sandgate.policy import RESOLVER, ResolverAccess
from sandgate.reasons import Reason

DNS_PORT = 53
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
_MAX_QUERY = 4096
_ORIGINAL = struct.Struct("!2xH4s8x")  # struct sockaddr_in
_NO_DATA = (RecordType.AAAA, RecordType.HTTPS, RecordType.SVCB)
_TRANSFERS = (RecordType.AXFR, RecordType.IXFR)
# Values of <linux/in.h>, which the socket module does not name.
IP_TRANSPARENT = 19
IP_RECVORIGDSTADDR = 20
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of a query: `reply`, or if that is None what upstream says."""

    reply: bytes | None
    reason: Reason
    rule: str | None = None

    @property
    def allowed(self) -> bool:
        return self.reason in (Reason.ALLOWED_NAME, Reason.ALLOWED_ADDRESS, Reason.DEFAULT_ALLOW)


class DnsGateway:
    """Answers queries of sandboxes that were sent to `address`, port 53."""

    def __init__(
        self,
        *,
        table: SandboxTable,
        resolver: Resolver,
        log: DecisionLog,
        address: IPv4Address,
        ingress: IPv4Address,
        domain: str,
        rate: int,
    ) -> None:
        self._table = table
        self._resolver = resolver
        self._log = log
        self._address = address
        self._ingress = ingress
        self._domain = domain
        self._rate = rate
        self._tasks: set[asyncio.Task[None]] = set()
        self._tcp_connections = 0
        self._reply_socket: socket.socket | None = None

    # UDP.

    def serve_udp(self, listener: socket.socket, reply_socket: socket.socket) -> None:
        """Start answering datagrams. `reply_socket` is bound to the address that was asked.

        Both are read: it depends on the kernel rules which of them a query is handed to.
        """
        self._reply_socket = reply_socket
        loop = asyncio.get_running_loop()
        for sock in (listener, reply_socket):
            sock.setblocking(False)
            loop.add_reader(sock.fileno(), self._read, sock)

    def _read(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                data, ancillary, _, source = sock.recvmsg(_MAX_QUERY, 64)
            except BlockingIOError:
                return
            for level, kind, value in ancillary:
                if (level, kind) == (socket.IPPROTO_IP, IP_RECVORIGDSTADDR):
                    port, packed = _ORIGINAL.unpack(value)
                    if (port, packed) == (DNS_PORT, self._address.packed):
                        self._take_datagram(data, source)

    def _take_datagram(self, data: bytes, source: tuple[str, int]) -> None:
        sandbox = self._table.get(source[0])
        reply, query = self._parse(data)
        if query is None:
            self._send(reply, source)
            return
        verdict = self._admit(sandbox, query)
        if verdict.reply is not None or sandbox is None:
            self._report(sandbox, query, verdict)
            self._send(verdict.reply, source)
        elif sandbox.dns_queries >= MAX_QUERIES:
            self._send(self._too_many(sandbox, query), source)
        else:
            task = asyncio.get_running_loop().create_task(self._relay(sandbox, query, source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _relay(self, sandbox: Sandbox, query: Query, source: tuple[str, int]) -> None:
        reply = await self._answer(sandbox, query)
        size = MAX_UDP_PLAIN if query.udp_size is None else min(query.udp_size, MAX_UDP)
        self._send(reply if len(reply) <= size else truncated_answer(query), source)

    def _send(self, reply: bytes | None, source: tuple[str, int]) -> None:
        if reply is not None and self._reply_socket is not None:
            with suppress(OSError):  # a datagram may get lost; the client asks again
                self._reply_socket.sendto(reply, source)

    # TCP.

    async def serve_tcp(self, listener: socket.socket) -> asyncio.Server:
        """Start answering connections."""
        return await asyncio.start_server(self._connection, sock=listener, limit=_MAX_QUERY)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, local = (writer.get_extra_info(key) for key in ("peername", "sockname"))
        sandbox = self._table.get(peer[0]) if peer else None
        if (
            sandbox is None
            or local != (str(self._address), DNS_PORT)
            or sandbox.dns_connections >= MAX_TCP
            or self._tcp_connections >= MAX_TCP_TOTAL
        ):
            _reset(writer)
            return
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
                    verdict = self._admit(sandbox, query)
                    if verdict.reply is None:
                        reply = await self._answer(sandbox, query)
                    else:
                        self._report(sandbox, query, verdict)
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
        """Stop answering datagrams that are being worked on."""
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

    def _admit(self, sandbox: Sandbox | None, query: Query) -> _Verdict:
        """Judge a query that came in just now."""
        now = asyncio.get_running_loop().time()
        if sandbox is not None and not sandbox.dns_rate.take(now, self._rate):
            return self._refused(query, Reason.LIMIT_DNS_RATE)
        return self._judge(sandbox, query)

    def _judge(self, sandbox: Sandbox | None, query: Query) -> _Verdict:
        question = query.question
        if sandbox is None or sandbox.removed:
            return self._refused(query, Reason.UNKNOWN_SANDBOX)
        policy = sandbox.policy
        access = policy.resolver
        if access is ResolverAccess.NONE:
            return self._refused(query, Reason.NO_RESOLVER)
        if not query.supported:
            return _Verdict(build_answer(query, Rcode.NOTIMP), Reason.RECORD_TYPE)
        if question.class_ != CLASS_IN or question.type in _TRANSFERS:
            return self._refused(query, Reason.RECORD_TYPE)
        name = question.name
        if access is ResolverAccess.NAMES:
            pattern = policy.names.match(name) if name is not None else None
            if pattern is None:
                return self._refused(query, Reason.NAME_NOT_ALLOWED)
            if question.type != RecordType.A and question.type not in _NO_DATA:
                return self._refused(query, Reason.RECORD_TYPE)
            reason, rule = Reason.ALLOWED_NAME, pattern
        else:
            decision = policy.decide(RESOLVER)
            reason, rule = decision.reason, decision.rule or ""
        reply = None
        if name is not None and is_under(name, self._domain):
            addresses = [self._ingress] if question.type == RecordType.A else []
            reply = build_answer(query, Rcode.NOERROR, addresses, NODE_TTL)
        elif question.type in _NO_DATA:
            reply = build_answer(query, Rcode.NOERROR)
        return _Verdict(reply, reason, rule or None)

    @staticmethod
    def _refused(query: Query, outcome: Reason) -> _Verdict:
        return _Verdict(build_answer(query, Rcode.REFUSED), outcome)

    def _too_many(self, sandbox: Sandbox, query: Query) -> bytes:
        """The answer to a query that would be one too many at a time."""
        self._report(sandbox, query, _Verdict(None, Reason.LIMIT_DNS_RATE))
        return build_answer(query, Rcode.SERVFAIL)

    async def _answer(self, sandbox: Sandbox, query: Query) -> bytes:
        """Ask upstream on behalf of a query that may be asked."""
        loop = asyncio.get_running_loop()
        if sandbox.dns_queries >= MAX_QUERIES:
            return self._too_many(sandbox, query)
        sandbox.dns_queries += 1
        try:
            lookup = Lookup(query.question, query.udp_size is not None, query.dnssec)
            answer = await self._resolver.ask(lookup)
            reply = answer.response.for_client(query, int(loop.time() - answer.received_at))
        except ResolutionError:
            reply = build_answer(query, Rcode.SERVFAIL)
        finally:
            sandbox.dns_queries -= 1
        verdict = self._judge(sandbox, query)  # the policy may have changed meanwhile
        self._report(sandbox, query, verdict)
        return reply if verdict.reply is None else verdict.reply

    def _report(self, sandbox: Sandbox | None, query: Query, verdict: _Verdict) -> None:
        self._log.write(
            Entry(
                sandbox_id=sandbox.sandbox_id if sandbox else None,
                protocol="dns",
                destination=str(self._address),
                port=DNS_PORT,
                allowed=verdict.allowed,
                reason=verdict.reason,
                name=query.question.text,
                rule=verdict.rule,
            ),
            sandbox.lines if sandbox else None,
        )


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once with a TCP reset."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
