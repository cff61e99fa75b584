"""Clients that stop within their TLS handshake: ended soon, unlike those that are slow later on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ingress.harness import DOMAIN, Gate, echo, hang_up, running, serving
from sandgate.ingress.client import IngressClient
from sandgate.ingress.handshakes import end_unfinished
from sandgate.ingress.routes import Route

SECONDS = 1.0
"""What clients have, to twice as much; less than every other limit."""
STUCK = 250
"""More than are ended in one command."""


@contextlib.asynccontextmanager
async def sweeping(gate: Gate) -> AsyncIterator[IngressClient]:
    routes = [Route("abc", gate.sandbox(1))]
    client = IngressClient(gate.config.admin_socket, lambda: routes, handshake=SECONDS)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def hello(gate: Gate, name: str) -> bytes:
    """A ClientHello."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = gate.tls().wrap_bio(received, sent, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return sent.read()


async def stuck(
    gate: Gate, sent: bytes, address: object = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose server has answered what was sent."""
    reader, writer = await asyncio.open_connection(str(address or gate.address), gate.port)
    writer.write(sent)
    assert await asyncio.wait_for(reader.read(1), 5)
    return reader, writer


async def test_handshakes_that_stop_after_their_beginning_are_ended(gate: Gate) -> None:
    hosts = [f"{label}.{DOMAIN}" for label in ("3000-abc", "49983-abc", "api")]
    async with sweeping(gate):
        opened = [
            await stuck(gate, hello(gate, host), address)
            for host in hosts
            for address in (gate.address, gate.inside)
        ]
        for reader, writer in opened:
            await asyncio.wait_for(reader.read(), 20)
            await hang_up(writer)


async def test_many_at_once_are_ended_and_requests_go_on(gate: Gate) -> None:
    async with serving(gate.sandbox(1), echo) as port, sweeping(gate):
        sent = hello(gate, f"{port}-abc.{DOMAIN}")
        opened = [await stuck(gate, sent) for _ in range(STUCK)]
        ends = asyncio.gather(*(reader.read() for reader, _ in opened))
        while not ends.done():
            assert (await gate.request(gate.host(port, "abc"))).status_code == 200
        await asyncio.wait_for(ends, 20)
        for _, writer in opened:
            await hang_up(writer)


async def test_who_finished_may_be_idle_slow_or_silent(gate: Gate) -> None:
    """For several times as long as a handshake may take: before, within and after a request."""
    released = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await released.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow")

    async def connect(host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            str(gate.address), gate.port, ssl=gate.tls(), server_hostname=host
        )

    async with serving(gate.sandbox(1), slow) as port, sweeping(gate):
        name = f"{port}-abc.{DOMAIN}"
        head = f"GET / HTTP/1.1\r\nHost: {name}:{gate.port}\r\n\r\n".encode()
        idle, waiting, halfway = [await connect(name) for _ in range(3)]
        waiting[1].write(head)
        halfway[1].write(head[:20])
        await asyncio.sleep(SECONDS * 4)
        idle[1].write(head)
        halfway[1].write(head[20:])
        await asyncio.sleep(0.2)
        released.set()
        for reader, writer in (idle, waiting, halfway):
            async with asyncio.timeout(10):
                assert (await reader.readuntil(b"slow")).startswith(b"HTTP/1.1 200 ")
            await hang_up(writer)


async def test_a_port_that_finished_once_is_no_excuse(gate: Gate) -> None:
    """The table remembers a connection for a moment after its end."""
    name = f"3000-abc.{DOMAIN}"
    reader, writer = await asyncio.open_connection(
        str(gate.address), gate.port, ssl=gate.tls(), server_hostname=name
    )
    own = writer.get_extra_info("sockname")
    await hang_up(writer)
    for _ in range(50):  # until nothing of the first one is in the way
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection(
                str(gate.address), gate.port, local_addr=own
            )
            break
        await asyncio.sleep(0.1)
    writer.write(hello(gate, name))
    assert await asyncio.wait_for(reader.read(1), 5)
    found = await end_unfinished(gate.config.admin_socket, set())
    assert found == {f"{own[0]}:{own[1]}"}
    await end_unfinished(gate.config.admin_socket, found)
    await asyncio.wait_for(reader.read(), 5)
    await hang_up(writer)


async def test_without_haproxy_it_is_tried_again(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    with pytest.raises(OSError):
        await end_unfinished(gate.config.admin_socket, set())
    with running(gate):
        async with sweeping(gate):
            gate.stop()
            await asyncio.sleep(SECONDS * 1.5)
            gate.start()
            reader, writer = await stuck(gate, hello(gate, f"3000-abc.{DOMAIN}"))
            await asyncio.wait_for(reader.read(), 20)
            await hang_up(writer)
