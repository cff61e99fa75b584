"""Streams through the gate: large bodies, events, WebSockets, silence."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator

import aiohttp
import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from aiohttp import web

from ingress.harness import DOMAIN, Gate, answering, connected, hang_up, serving
from ingress.web import application, browser
from sandgate.ingress.routes import ENVD_PORT, JUPYTER_PORT, Route


@pytest.mark.parametrize("http2", [False, True])
async def test_large_bodies_pass_both_ways_unharmed(gate: Gate, http2: bool) -> None:
    async def digest(request: web.Request) -> web.StreamResponse:
        hasher = hashlib.sha256()
        size = 0
        async for chunk in request.content.iter_any():
            hasher.update(chunk)
            size += len(chunk)
        return web.json_response({"size": size, "sha256": hasher.hexdigest()})

    async def download(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(64):
            await response.write(block)
        return response

    block = os.urandom(1 << 20)
    app = web.Application()
    app.router.add_post("/", digest)
    app.router.add_get("/", download)

    async def upload() -> AsyncIterator[bytes]:
        for _ in range(32):
            yield block

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        application(gate, app) as port,
    ):
        host = gate.host(port, "abc")
        response = await gate.request(host, method="POST", content=upload(), http2=http2)
        assert response.json() == {
            "size": 32 << 20,
            "sha256": hashlib.sha256(block * 32).hexdigest(),
        }
        response = await gate.request(host, http2=http2)
        assert hashlib.sha256(response.content).digest() == hashlib.sha256(block * 64).digest()


@pytest.mark.parametrize("length", [b"Content-Length: 4000000", b"Transfer-Encoding: chunked"])
async def test_who_uploads_slowly_is_heard_out_before_the_refusal(
    gate: Gate, length: bytes
) -> None:
    """Or the client would see its connection break, and not why."""
    name = f"{ENVD_PORT}-nosuch.{DOMAIN}"
    reader, writer = await asyncio.open_connection(
        str(gate.address), gate.port, ssl=gate.tls(), server_hostname=name
    )
    try:
        head = b"POST /files HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n" % (name.encode(), length)
        piece = bytes(40_000)
        if b"chunked" in length:
            piece = b"%x\r\n%s\r\n" % (len(piece), piece)
        for _ in range(2):  # the connection can be used again
            writer.write(head)
            for number in range(100):
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0.01 * (number < 20))
            writer.write(b"0\r\n\r\n" if b"chunked" in length else b"")
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 10)
            assert answer.startswith(b"HTTP/1.1 502 ")
            assert answer.endswith(
                b'{"sandboxId":"nosuch","message":"The sandbox was not found","code":502}'
            )
    finally:
        await hang_up(writer)


@pytest.mark.parametrize("http2", [False, True])
async def test_events_arrive_one_by_one_as_they_are_sent(gate: Gate, http2: bool) -> None:
    tick = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(3):
            await response.write(b"data: %d\n\n" % number)
            await tick.wait()
            tick.clear()
        return response

    app = web.Application()
    app.router.add_get("/", events)
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        application(gate, app) as port,
        gate.client(http2=http2) as client,
        client.stream(
            "GET",
            f"https://{gate.address}:{gate.port}/",
            headers={"Host": gate.host(port, "abc")},
            extensions={"sni_hostname": f"{port}-abc.{DOMAIN}"},
        ) as response,
    ):
        number = 0
        async for line in response.aiter_lines():
            if line:
                assert line == f"data: {number}"
                number += 1
                tick.set()  # the next one is not sent before this one has arrived
        assert number == 3


async def test_a_request_body_reaches_the_server_while_it_is_being_sent(gate: Gate) -> None:
    got = asyncio.Queue[bytes]()

    async def swallow(request: web.Request) -> web.Response:
        async for chunk in request.content.iter_any():
            await got.put(chunk)
        return web.Response(text="done")

    async def dribble() -> AsyncIterator[bytes]:
        for number in range(3):
            yield b"part %d" % number
            assert await asyncio.wait_for(got.get(), 5) == b"part %d" % number

    app = web.Application()
    app.router.add_post("/", swallow)
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        application(gate, app) as port,
    ):
        response = await gate.request(gate.host(port, "abc"), method="POST", content=dribble())
        assert response.text == "done"


async def _echo_messages(request: web.Request) -> web.WebSocketResponse:
    socket_ = web.WebSocketResponse(max_msg_size=0)
    await socket_.prepare(request)
    async for message in socket_:
        if message.type == aiohttp.WSMsgType.BINARY:
            await socket_.send_bytes(message.data)
        elif message.type == aiohttp.WSMsgType.TEXT:
            await socket_.send_str(f"{request.host} {message.data}")
    return socket_


async def test_websockets_carry_messages_both_ways(gate: Gate) -> None:
    app = web.Application()
    app.router.add_get("/ws", _echo_messages)
    async with (
        connected(
            gate, Route("abc", gate.sandbox(1)), Route("xyz", gate.sandbox(1), "secretsecret")
        ),
        application(gate, app) as port,
        browser(gate) as session,
    ):
        host = gate.host(port, "abc")
        async with session.ws_connect(f"wss://{host}/ws", max_msg_size=0) as ws:
            await ws.send_str("hello")
            assert await ws.receive_str() == f"{host} hello"
            data = os.urandom(1 << 20)
            await ws.send_bytes(data)
            assert await ws.receive_bytes() == data
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await session.ws_connect(f"wss://{gate.host(port, 'xyz')}/ws")
        assert refused.value.status == 403
        headers = {"e2b-traffic-access-token": "secretsecret"}
        url = f"wss://{gate.host(port, 'xyz')}/ws"
        async with session.ws_connect(url, headers=headers) as ws:
            await ws.send_bytes(b"in")
            assert await ws.receive_bytes() == b"in"


async def test_websockets_work_over_http2(gate: Gate) -> None:
    """RFC 8441, as browsers do it on an HTTP/2 connection."""
    app = web.Application()
    app.router.add_get("/ws", _echo_messages)
    tls = gate.tls()
    tls.set_alpn_protocols(["h2"])
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        application(gate, app) as port,
    ):
        reader, writer = await asyncio.open_connection(
            str(gate.address), gate.port, ssl=tls, server_hostname=DOMAIN
        )
        connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        received: list[h2.events.Event] = []

        async def until(kind: type[h2.events.Event]) -> h2.events.Event:
            while True:
                for index, event in enumerate(received):
                    if isinstance(event, kind):
                        del received[: index + 1]
                        return event
                data = await asyncio.wait_for(reader.read(65536), 5)
                assert data, "the connection ended"
                received.extend(connection.receive_data(data))
                writer.write(connection.data_to_send())

        await until(h2.events.RemoteSettingsChanged)
        stream = connection.get_next_available_stream_id()
        connection.send_headers(
            stream,
            [
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", "/ws"),
                (":authority", gate.host(port, "abc")),
                ("sec-websocket-version", "13"),
            ],
        )
        writer.write(connection.data_to_send())
        answer = await until(h2.events.ResponseReceived)
        assert isinstance(answer, h2.events.ResponseReceived)
        assert (":status", "200") in [(str(name), str(value)) for name, value in answer.headers]
        # One masked text frame "hi" with a mask of zeros.
        connection.send_data(stream, b"\x81\x82\0\0\0\0hi")
        writer.write(connection.data_to_send())
        data = await until(h2.events.DataReceived)
        assert isinstance(data, h2.events.DataReceived)
        assert (data.data or b"").endswith(b" hi")
        await hang_up(writer)


@pytest.mark.parametrize(
    "head", [b"Content-Length: 100\r\n\r\nab", b"Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n"]
)
@pytest.mark.parametrize("port", [0, ENVD_PORT, JUPYTER_PORT])
async def test_an_answer_that_was_cut_short_is_seen_to_be(
    gate: Gate, head: bytes, port: int
) -> None:
    """On the ports that the SDKs stream from also if the client could do HTTP/2."""
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), answering(b"HTTP/1.1 200 OK\r\n" + head), port) as bound,
    ):
        with pytest.raises(httpx.RemoteProtocolError):
            await gate.request(gate.host(bound, "abc"), http2=port != 0)


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_its_request_in_the_sandbox(
    gate: Gate, http2: bool, begun: bool
) -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if begun:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), wait) as port,
    ):
        request = asyncio.create_task(gate.request(gate.host(port, "abc"), http2=http2))
        await asyncio.sleep(0.3)
        assert not gone.is_set()
        request.cancel()
        await asyncio.wait_for(gone.wait(), 2)


async def test_a_silent_stream_is_still_there_after_a_while(gate: Gate) -> None:
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(2)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), late) as port,
    ):
        assert (await gate.request(gate.host(port, "abc"))).text == "ok"
