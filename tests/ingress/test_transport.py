"""How bytes travel: protocols, streaming, retries, aborts, limits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from pathlib import Path

import pyqwest
import pytest

from ingress.harness import DOMAIN, Gate, answering, connected, echo, hang_up, running, serving
from sandgate.ingress.routes import ENVD_PORT, Route


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


async def test_no_timeout_is_shorter_than_an_hour(gate: Gate) -> None:
    """Time itself is not waited for; HAProxy's reading of the configuration is trusted."""
    timeouts = [
        line.split() for line in gate.config.config_file.read_text().splitlines()
        if line.strip().startswith("timeout ")
    ]  # fmt: skip
    lasting = {name: value for _, name, value in timeouts if name in ("client", "server", "tunnel")}
    assert set(lasting) == {"client", "server", "tunnel"}
    assert all(value.endswith("h") and int(value[:-1]) > 1 for value in lasting.values())


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
