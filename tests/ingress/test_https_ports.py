"""Ports of a sandbox whose servers speak HTTPS themselves."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import pytest
import trustme

from ingress.harness import TOKEN, Gate, Handler, connected, echo, seen_headers, serving
from sandgate.ingress.routes import MAX_HTTPS_PORTS, Route, RouteError, parse_https_ports


class Server:
    """A TLS server on a sandbox's address, with a certificate that nobody trusts."""

    def __init__(self, *alpn: str) -> None:
        self.names: list[str | None] = []
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("wrong.example").configure_cert(self.context)
        if alpn:
            self.context.set_alpn_protocols(list(alpn))
        self.context.sni_callback = lambda _, name, __: self.names.append(name)

    @asynccontextmanager
    async def at(self, gate: Gate, handler: Handler = echo) -> AsyncIterator[int]:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handler(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        address = str(gate.sandbox(1))
        server = await asyncio.start_server(handle, address, 0, ssl=self.context)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()


async def echo_h2(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks HTTP/2 only; answers with the pseudo-headers of the request."""
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    while data := await reader.read(65_536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                assert event.headers is not None
                seen = b"\n".join(b"%b=%b" % header for header in event.headers)
                connection.send_headers(event.stream_id, [(":status", "200")])
                connection.send_data(event.stream_id, seen, end_stream=True)
        writer.write(connection.data_to_send())
        await writer.drain()


@pytest.mark.parametrize("http2", [False, True])
async def test_the_port_is_connected_to_with_tls_whatever_its_certificate(
    gate: Gate, http2: bool
) -> None:
    server = Server("http/1.1")
    async with (
        server.at(gate) as port,
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(port,))),
    ):
        host = gate.host(port, "abc")
        for _ in range(2):  # the second time, the port has answered before
            response = await gate.request(host, "/a?b", http2=http2)
            assert response.text.startswith("GET /a?b HTTP/1.1\r\n")
            assert seen_headers(response)["host"] == host
        assert server.names == [host.partition(":")[0]] * 2


async def test_only_the_ports_listed_get_tls(gate: Gate) -> None:
    async with (
        Server().at(gate) as secure,
        serving(gate.sandbox(1), echo) as plain,
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(secure,))),
    ):
        assert (await gate.request(gate.host(secure, "abc"))).status_code == 200
        assert (await gate.request(gate.host(plain, "abc"))).status_code == 200
    async with (
        Server().at(gate) as secure,
        # A port whose digits are a part of this one's.
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(secure // 10,))),
    ):
        assert (await gate.request(gate.host(secure, "abc"))).status_code == 502


async def test_a_server_that_speaks_only_http2_is_reached(gate: Gate) -> None:
    async with (
        Server("h2").at(gate, echo_h2) as port,
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(port,))),
    ):
        host = gate.host(port, "abc")
        seen = (await gate.request(host, "/x")).text.splitlines()
        assert {":method=GET", ":path=/x", f"host={host}"} <= set(seen)


async def test_masked_and_private_as_any_port(gate: Gate) -> None:
    server = Server("http/1.1")
    async with server.at(gate) as port:
        route = Route("abc", gate.sandbox(1), TOKEN, "localhost:${PORT}", (port,))
        async with connected(gate, route):
            host = gate.host(port, "abc")
            assert (await gate.request(host)).status_code == 403
            assert server.names == [], "without the token the port is not tried"
            response = await gate.request(host, headers={"E2b-Traffic-Access-Token": TOKEN})
            assert seen_headers(response)["host"] == f"localhost:{port}"
            assert server.names == ["localhost"]


@pytest.mark.parametrize("mask", ["127.0.0.1:${PORT}", "[::1]:${PORT}"])
async def test_an_address_is_not_shown_as_a_name(gate: Gate, mask: str) -> None:
    server = Server()
    async with (
        server.at(gate) as port,
        connected(gate, Route("abc", gate.sandbox(1), mask_host=mask, https_ports=(port,))),
    ):
        assert (await gate.request(gate.host(port, "abc"))).status_code == 200
        assert server.names == [None]


async def test_where_no_tls_is_spoken_it_is_502(gate: Gate) -> None:
    async with (
        serving(gate.sandbox(1), echo) as plain,
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(1, plain))),
    ):
        for port in (1, plain):
            response = await gate.request(gate.host(port, "abc"))
            assert response.status_code == 502
            assert response.json()["port"] == port


async def test_websockets_reach_a_server_that_prefers_http2(gate: Gate) -> None:
    async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("ssl_object")
        assert connection.selected_alpn_protocol() == "http/1.1"
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        writer.write(await reader.readexactly(5))
        await writer.drain()

    async with (
        Server("h2", "http/1.1").at(gate, upgrade) as port,
        connected(gate, Route("abc", gate.sandbox(1), https_ports=(port,))),
    ):
        host = gate.host(port, "abc")
        reader, writer = await asyncio.open_connection(
            str(gate.address), gate.port, ssl=gate.tls(), server_hostname=host.partition(":")[0]
        )
        writer.write(
            f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            "hello".encode()
        )
        try:
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 101 ")
            assert await asyncio.wait_for(reader.readexactly(5), 10) == b"hello"
        finally:
            writer.transport.abort()


def test_ports_are_put_in_order_each_once() -> None:
    assert parse_https_ports([8443, 1, 8443, 65535]) == (1, 8443, 65535)
    assert Route("abc", None, https_ports=(1, 8443)).value() == "asleep|-|-|,1,8443,"
    assert Route("abc", None).value() == "asleep|-|-|-"


@pytest.mark.parametrize(
    ("ports", "why"),
    [
        ([0], "from 1 to 65535"),
        ([65536], "from 1 to 65535"),
        ([8443, 49983], "the sandbox's own daemon"),
        (range(1, MAX_HTTPS_PORTS + 2), f"at most {MAX_HTTPS_PORTS}"),
    ],
)
def test_a_port_that_cannot_be_one_is_refused_with_the_reason(
    ports: list[int] | range, why: str
) -> None:
    with pytest.raises(RouteError, match=why) as caught:
        parse_https_ports(ports)
    assert caught.value.field == "httpsPorts"
    with pytest.raises(RouteError, match=why):
        Route("abc", None, https_ports=tuple(ports))
