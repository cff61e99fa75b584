"""The model's proxy: `python -m attacks.e2b.proxy RESOLVER`, in the host's namespace.

Takes one line of JSON on standard input for each new policy, answers it with a line, and ends with
its input. Connections under way keep going whatever the policy becomes.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

import dns.asyncresolver
import dns.exception

from attacks.e2b import rules

_SO_ORIGINAL_DST = 80
PORTS = {80: 5016, 443: 5017, 0: 5018}
"""Listener for each port of the original destination; 0 stands for all others."""

Sniff = Callable[[bytes], str | None]


class Model:
    """The proxy's state: the policy, and the host's resolver."""

    def __init__(self, resolver: str) -> None:
        self.config = rules.Config()
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        self._resolver.nameservers = [resolver]
        self._resolver.lifetime = 1

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sniff: Sniff | None
    ) -> None:
        """One connection: judged once, by its first bytes."""
        try:
            await self._relay(reader, writer, sniff)
        except (OSError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            pass  # asyncio 3.11 would log it as an error
        finally:
            writer.close()

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sniff: Sniff | None
    ) -> None:
        client: socket.socket = writer.get_extra_info("socket")
        original = client.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack("!2xH4s8x", original)
        address = socket.inet_ntoa(packed)
        data, name = b"", ""
        while sniff is not None:  # with no limit of time
            piece = await reader.read(rules.PEEK)
            data += piece
            found = sniff(data)
            if found is not None or not piece:
                name = found or ""
                break
        target = rules.decide(self.config, name, address)
        if target is None:
            return
        upstream_reader, upstream = await self._dial(target, port)
        upstream.write(data)
        await asyncio.gather(_copy(reader, upstream), _copy(upstream_reader, writer))

    async def _dial(
        self, target: str, port: int
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for address in await self._addresses(target):
            if not rules.always_denied(address):
                with suppress(OSError):
                    return await asyncio.open_connection(address, port)
        raise ConnectionRefusedError(target)

    async def _addresses(self, target: str) -> list[str]:
        if rules.is_address(target):
            return [target]
        found: list[str] = []
        for kind in ("A", "AAAA"):
            with suppress(dns.exception.DNSException):
                answer = await self._resolver.resolve(target, kind)
                found += [str(item) for item in answer]
        return found


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def _main(resolver: str) -> None:
    model = Model(resolver)
    sniffers: dict[int, Sniff | None] = {80: rules.host, 443: rules.server_name, 0: None}
    for port, sniff in sniffers.items():

        async def serve(
            reader: asyncio.StreamReader,
            writer: asyncio.StreamWriter,
            sniff: Sniff | None = sniff,
        ) -> None:
            await model.serve(reader, writer, sniff)

        await asyncio.start_server(serve, "0.0.0.0", PORTS[port], backlog=4096)
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("ready", flush=True)
    while line := await lines.readline():
        model.config = rules.Config.of(**json.loads(line))
        print("set", flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
