"""The process that plays all hosts of the small internet. Runs in its network namespace.

`python -m internet.server CONTROL_SOCKET`: prints the CA certificate as one line of JSON once
everything listens, and ends when its standard input does, so that it never outlives its test run.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from internet.contacts import Journal
from internet.dns import Resolver
from internet.names import ZONE, Record
from internet.sniffer import Sniffer
from internet.tls import Certificates
from internet.web import WebServer

_IP_PKTINFO = 8
_STREAM_LIMIT = 1 << 17
ECHO_TCP_PORTS = (5432, 8080, 9999)
ECHO_UDP_PORTS = (123, 443, 5353, 9999)
COUNTED_TCP_PORT = 7777
"""An echo that writes down each piece it receives."""
SSH_BANNER = b"SSH-2.0-small-internet\r\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class World:
    """All servers, and the control socket."""

    def __init__(self) -> None:
        self.journal = Journal()
        self.certificates = Certificates()
        self.resolver = Resolver(ZONE, self.journal)
        self.web = WebServer(self.journal)
        self.dns_delay = 0.0
        """Seconds that every answer to a query over UDP takes."""
        self._sniffers: list[Sniffer] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, control: str) -> None:
        """Listen everywhere."""
        await self._listen(53, self.resolver.serve_stream)
        await self._listen(80, partial(self.web.serve, sni=None))
        await self._listen(443, self._serve_tls, self.certificates.context)
        await self._listen(22, _serve_ssh)
        await self._listen(11371, _serve_half_close)
        for port in ECHO_TCP_PORTS:
            await self._listen(port, _serve_echo)
        await self._listen(COUNTED_TCP_PORT, self._serve_counted)
        self._bind_udp(53, self._answer_dns)
        for port in ECHO_UDP_PORTS:
            self._bind_udp(port, lambda data, _source, _server: data)
        await asyncio.start_unix_server(self._serve_control, control, limit=1 << 22)

    async def _listen(self, port: int, handler: Handler, tls: Any = None) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            source, server = (writer.get_extra_info(key) for key in ("peername", "sockname"))
            connection = writer.get_extra_info("ssl_object")
            name = (self.certificates.sni(connection) or "") if connection else ""
            self.journal.add("connection", "tcp", source[0], server[0], port, name)
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                pass  # the peer went away or sent nonsense: its own affair
            except asyncio.CancelledError:
                pass  # the world ends; asyncio 3.11 would log it as an error
            finally:
                writer.close()

        await asyncio.start_server(serve, None, port, ssl=tls, limit=_STREAM_LIMIT, backlog=512)

    async def _serve_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sni = self.certificates.sni(writer.get_extra_info("ssl_object"))
        await self.web.serve(reader, writer, sni)

    async def _serve_counted(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        source, server = (writer.get_extra_info(key) for key in ("peername", "sockname"))
        while data := await reader.read(1 << 16):
            size = len(data)
            self.journal.add("data", "tcp", source[0], server[0], COUNTED_TCP_PORT, size=size)
            writer.write(data)
            await writer.drain()

    def _answer_dns(self, data: bytes, source: str, server: str) -> bytes | None:
        return self.resolver.answer(data, source, server, "udp")

    def _bind_udp(self, port: int, answer: Callable[[bytes, str, str], bytes | None]) -> None:
        """Answer datagrams from the address that they were sent to."""
        endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        endpoint.setblocking(False)
        endpoint.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        endpoint.bind(("0.0.0.0", port))

        def readable() -> None:
            data, ancillary, _, peer = endpoint.recvmsg(65536, 64)
            _, _, server = struct.unpack("I4s4s", ancillary[0][2])
            reply = answer(data, peer[0], socket.inet_ntoa(server))
            if reply is not None:
                info = [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("I4s4s", 0, server, bytes(4)))]
                delay = self.dns_delay if port == 53 else 0
                loop.call_later(delay, endpoint.sendmsg, [reply], info, 0, peer)

        loop = asyncio.get_running_loop()
        loop.add_reader(endpoint, readable)

    async def _serve_control(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while line := await reader.readline():
                reply = self._control(json.loads(line))
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        finally:
            writer.close()

    def _control(self, request: dict[str, Any]) -> object:
        for sniffer in self._sniffers:
            sniffer.drain()
        match request["op"]:
            case "contacts":
                return [contact.to_json() for contact in self.journal.contacts]
            case "reset":
                self.journal.contacts.clear()
            case "name":
                self.resolver.set(request["name"], Record.from_json(request["record"]))
            case "dns delay":
                self.dns_delay = request["seconds"]
            case "publish":
                self.web.published[request["host"]] = Path(request["directory"])
            case "sniff":
                sniffer = Sniffer(request["interface"], self.journal)
                self._sniffers.append(sniffer)
                asyncio.get_running_loop().add_reader(sniffer.socket, sniffer.drain)
            case unknown:
                return {"error": f"unknown operation {unknown}"}
        return None


async def _serve_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


async def _serve_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The server speaks first, as SSH, SMTP and MySQL do."""
    writer.write(SSH_BANNER)
    await _serve_echo(reader, writer)


async def _serve_half_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only once the client has closed its direction, as some key servers' clients do."""
    received = await reader.read(-1)
    writer.write(f"received {len(received)} bytes\n".encode())
    await writer.drain()


async def _main(control: str) -> None:
    world = World()
    await world.start(control)
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def check_input() -> None:
        if not os.read(0, 1024) and not ended.done():
            ended.set_result(None)

    loop.add_reader(0, check_input)
    sys.stdout.write(json.dumps({"ca": world.certificates.ca_pem}) + "\n")
    sys.stdout.flush()
    await ended


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
