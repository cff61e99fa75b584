"""The small internet's DNS, over UDP and TCP."""

from __future__ import annotations

import asyncio
import struct

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from internet.contacts import Journal
from internet.names import Record, find

_PLAIN_UDP_SIZE = 512


class Resolver:
    """Answers queries from a zone that tests can change."""

    def __init__(self, zone: dict[str, Record], journal: Journal) -> None:
        self.zone = dict(zone)
        self._journal = journal
        self._asked: dict[str, int] = {}

    def set(self, name: str, record: Record) -> None:
        """Change one name."""
        self.zone[name] = record
        self._asked.pop(name, None)

    def answer(self, wire: bytes, source: str, server: str, transport: str) -> bytes | None:
        """The reply to a query, None to anything that is not one."""
        try:
            query = dns.message.from_wire(wire, ignore_trailing=True)
        except dns.exception.DNSException:
            return None
        if not query.question:
            return None
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        # What carries data beside the name: its case, options, other sections, what follows.
        odd = name != name.lower() or bool(query.options) or bool(query.additional)
        odd = odd or len(query.question) > 1 or len(query.to_wire()) != len(wire)
        self._journal.add("query", transport, source, server, 53, name.lower(), type=kind, odd=odd)
        response = dns.message.make_response(query, recursion_available=True)
        if not self._fill(response, name, question.rdtype):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if transport == "tcp":
            return response.to_wire(max_size=65535)
        limit = query.payload if query.edns >= 0 else _PLAIN_UDP_SIZE
        try:
            return response.to_wire(max_size=limit)
        except dns.exception.TooBig:
            response.answer.clear()
            response.flags |= dns.flags.TC
            return response.to_wire(max_size=65535)

    def _fill(self, response: dns.message.Message, name: str, kind: int) -> bool:
        seen = set()
        while (record := find(self.zone, name.lower())) is not None:
            if record.cname is None or name.lower() in seen:
                break
            seen.add(name.lower())
            self._add(response, name, record.ttl, dns.rdatatype.CNAME, (record.cname + ".",))
            name = record.cname
        if record is None:
            return False
        if kind == dns.rdatatype.A:
            asked = self._asked[name.lower()] = self._asked.get(name.lower(), 0) + 1
            addresses = record.then if record.then and asked > 1 else record.addresses
            self._add(response, name, record.ttl, dns.rdatatype.A, addresses)
        elif kind == dns.rdatatype.AAAA:
            self._add(response, name, record.ttl, dns.rdatatype.AAAA, record.ipv6)
        elif kind == dns.rdatatype.TXT and record.text is not None:
            parts = [record.text[at : at + 200] for at in range(0, len(record.text), 200)]
            text = " ".join(f'"{part}"' for part in parts)
            self._add(response, name, record.ttl, dns.rdatatype.TXT, (text,))
        return True

    @staticmethod
    def _add(
        response: dns.message.Message,
        name: str,
        ttl: int,
        kind: dns.rdatatype.RdataType,
        values: tuple[str, ...],
    ) -> None:
        # One set for each value: dnspython shuffles those of one set, and order matters here.
        for value in values:
            response.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, value))

    async def serve_stream(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """DNS over TCP: messages with two bytes of length in front."""
        while True:
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            wire = await reader.readexactly(length)
            source = writer.get_extra_info("peername")[0]
            reply = self.answer(wire, source, writer.get_extra_info("sockname")[0], "tcp")
            if reply is None:
                return
            writer.write(struct.pack("!H", len(reply)) + reply)
            await writer.drain()
