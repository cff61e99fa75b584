"""How bytes travel: protocols, streaming, retries, aborts, limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import h2.config
import h2.connection
import h2.events
import httpx
import pyqwest
import pytest
from aiohttp import web

from ingress.harness import DOMAIN, Gate, answering, connected, echo, hang_up, running, serving
from sandgate.ingress.routes import ENVD_PORT, JUPYTER_PORT, Route


@contextlib.asynccontextmanager
async def application(gate: Gate, app: web.Application) -> AsyncIterator[int]:
    """An aiohttp application in sandbox 1."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, str(gate.sandbox(1)), 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class _ToGate(aiohttp.abc.AbstractResolver):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            aiohttp.abc.ResolveResult(
                hostname=host, host=str(self._gate.address), port=port,
                family=socket.AF_INET, proto=0, flags=0,
            )
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def browser(gate: Gate) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(resolver=_ToGate(gate), ssl=gate.tls())
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def test_a_server_that_begins_to_listen_700_ms_later_is_reached(gate: Gate) -> None:
    with socket.socket() as reserved:
        reserved.bind((str(gate.sandbox(1)), 0))
        port: int = reserved.getsockname()[1]
    async with connected(gate, Route("abc", gate.sandbox(1))):
        started = time.monotonic()
        request = asyncio.create_task(gate.request(gate.host(port, "abc")))
        await asyncio.sleep(0.7)
        async with serving(gate.sandbox(1), echo, port):
            response = await request
            took = time.monotonic() - started
        assert response.status_code == 200
        assert 0.7 <= took < 1.2


async def test_a_port_that_answered_before_is_tried_again_too(gate: Gate) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))):
        async with serving(gate.sandbox(1), echo) as port:
            assert (await gate.request(gate.host(port, "abc"))).status_code == 200
        request = asyncio.create_task(gate.request(gate.host(port, "abc")))
        await asyncio.sleep(0.7)
        async with serving(gate.sandbox(1), echo, port):
            assert (await request).status_code == 200
        assert (await gate.request(gate.host(port, "abc"))).status_code == 502


async def test_a_busy_server_with_a_full_queue_is_waited_for(gate: Gate) -> None:
    """One request at a time and a backlog of one: the others' connections are dropped meanwhile."""
    listener = socket.create_server((str(gate.sandbox(1)), 0), backlog=1)
    port: int = listener.getsockname()[1]
    stop = False

    def serve() -> None:
        listener.settimeout(0.2)
        while not stop:
            with contextlib.suppress(TimeoutError):
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(2)
                    peer.recv(65536)
                    time.sleep(0.5)
                    peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = asyncio.create_task(asyncio.to_thread(serve))
    try:
        async with connected(gate, Route("abc", gate.sandbox(1))):
            assert (await gate.request(gate.host(port, "abc"))).status_code == 200
            replies = await asyncio.gather(
                *(gate.request(gate.host(port, "abc")) for _ in range(6))
            )
            assert [reply.status_code for reply in replies] == [200] * 6
    finally:
        stop = True
        await server
        listener.close()


@pytest.mark.parametrize("http2", [False, True])
async def test_a_request_that_the_server_dropped_is_answered_on_a_kept_connection_too(
    gate: Gate, http2: bool
) -> None:
    """Closing instead would tell the client to send it again, and it may have had an effect."""
    received = 0

    async def sometimes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            received += 1

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), sometimes) as port,
        gate.client(http2=http2) as client,
    ):
        host = gate.host(port, "abc")
        for round_ in range(1, 4):
            for method, status in (("GET", 200), ("POST", 502), ("GET", 200)):
                response = await client.request(
                    method,
                    f"https://{gate.address}:{gate.port}/",
                    headers={"Host": host},
                    extensions={"sni_hostname": f"{port}-abc.{DOMAIN}"},
                )
                assert response.status_code == status
            assert received == round_, "each POST reached the server once"


@pytest.mark.parametrize("http2", [False, True])
async def test_one_connection_of_a_client_reaches_each_sandbox_it_names(
    gate: Gate, http2: bool
) -> None:
    """As browsers do it, which share a connection among names with the same certificate."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
    async with (
        connected(gate, Route("abc", gate.sandbox(1)), Route("xyz", gate.sandbox(2))),
        serving(gate.sandbox(1), answering(head + b"abc")) as p,
        serving(gate.sandbox(2), answering(head + b"xyz"), p),
        gate.client(http2=http2) as client,
    ):
        for name in ("abc", "xyz", "abc", "abc", "xyz"):
            response = await client.get(
                f"https://{gate.address}:{gate.port}/",
                headers={"Host": gate.host(p, name)},
                extensions={"sni_hostname": DOMAIN},
            )
            assert response.text == name


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


@pytest.mark.parametrize("port", [ENVD_PORT, 3000])
async def test_the_sdk_gets_the_answer_to_an_upload_that_is_refused(gate: Gate, port: int) -> None:
    """With the SDK's own transport, over HTTP/1.1 and HTTP/2."""
    name = f"{port}-nosuch.{DOMAIN}"
    transport = pyqwest.SyncHTTPTransport(
        tls_ca_cert=gate.certificates.ca.read_bytes() if gate.certificates.ca else None,
        dns_overrides={name: [str(gate.address)]},
    )
    client = pyqwest.SyncClient(transport)
    for _ in range(5):
        response = await asyncio.to_thread(
            client.post, f"https://{name}:{gate.port}/files", content=b"x" * 200_000
        )
        assert response.status == 502
        assert b"The sandbox was not found" in bytes(response.content)


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


@pytest.mark.parametrize(
    ("name", "version"),
    [
        (f"3000-abc.{DOMAIN}", "h2"),
        (f"api.{DOMAIN}", "h2"),
        (f"49983-abc.{DOMAIN}", "http/1.1"),
        (f"49983-ABC.{DOMAIN}".upper(), "http/1.1"),
        (f"49999-abc.{DOMAIN}", "http/1.1"),
        (f"sandbox.{DOMAIN}", "http/1.1"),
        ("localhost", "http/1.1"),
    ],
)
async def test_http2_is_offered_where_no_sdk_streams(gate: Gate, name: str, version: str) -> None:
    tls = gate.tls()
    tls.set_alpn_protocols(["h2", "http/1.1"])
    for address in (gate.address, gate.inside):
        _, writer = await asyncio.open_connection(
            str(address), gate.port, ssl=tls, server_hostname=name
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == version
        await hang_up(writer)


async def test_what_is_not_tls_is_cut_off(gate: Gate) -> None:
    reader, writer = await asyncio.open_connection(str(gate.address), gate.port)
    writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 2) == b""
    await hang_up(writer)


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


async def test_no_timeout_is_shorter_than_an_hour(gate: Gate) -> None:
    """Time itself is not waited for; HAProxy's reading of the configuration is trusted."""
    timeouts = [
        line.split() for line in gate.config.config_file.read_text().splitlines()
        if line.strip().startswith("timeout ")
    ]  # fmt: skip
    lasting = {name: value for _, name, value in timeouts if name in ("client", "server", "tunnel")}
    assert set(lasting) == {"client", "server", "tunnel"}
    assert all(value.endswith("h") and int(value[:-1]) > 1 for value in lasting.values())


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


async def test_more_requests_than_a_sandbox_may_have_open_are_429(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await release.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    with running(Gate(tmp_path, maxconn=32)) as gate:
        async with (
            connected(gate, Route("abc", gate.sandbox(1)), Route("xyz", gate.sandbox(2))),
            serving(gate.sandbox(1), hold) as port,
            serving(gate.sandbox(2), echo, port),
        ):
            host = gate.host(port, "abc")
            held = [asyncio.create_task(gate.request(host, http2=True)) for _ in range(8)]
            await asyncio.sleep(0.5)
            refused = await gate.request(host)
            assert refused.status_code == 429
            assert refused.json()["code"] == 429
            assert (await gate.request(gate.host(port, "xyz"))).status_code == 200
            release.set()
            assert [(await task).status_code for task in held] == [200] * 8
            assert (await gate.request(host)).status_code == 200


async def test_one_peer_cannot_take_all_connections_of_the_inner_address(tmp_path: Path) -> None:
    with running(Gate(tmp_path, maxconn=32)) as gate, contextlib.ExitStack() as opened:

        def connect() -> socket.socket:
            return opened.enter_context(
                socket.create_connection(
                    (str(gate.inside), gate.port), 5, source_address=(str(gate.sandbox(9)), 0)
                )
            )

        allowed = [connect() for _ in range(4)]
        await asyncio.sleep(0.2)
        with contextlib.suppress(ConnectionError):
            assert connect().recv(1) == b""
        for held in allowed:
            held.settimeout(0.05)
            with pytest.raises(TimeoutError):
                held.recv(1)
        async with connected(gate):
            response = await gate.request(gate.host(80, "nosuch"), address=gate.inside)
        assert response.status_code == 502, "others get in"
