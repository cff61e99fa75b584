"""Requests that go straight into the sandbox: what their clients are told, and who gets none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from ingress.harness import BROWSER, DOMAIN, Gate, connected, hang_up, serving
from sandgate.ingress.pages import NO_ANSWER, NOT_FOUND, PORT_CLOSED
from sandgate.ingress.routes import ENVD_PORT, JUPYTER_PORT, Route


@dataclass
class Server:
    """Answers `/ok`, drops everything else: with a reset if `reset`; counts what it dropped."""

    reset: bool = False
    dropped: int = 0
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" /ok " in head:
            writer.write(self.answer)
            return
        self.dropped += 1
        if self.reset:
            writer.transport.abort()


class Client:
    """One kept connection over HTTP/1.1."""

    def __init__(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._host, self._reader, self._writer = host, reader, writer

    async def ask(self, method: str, path: str, *headers: str, body: bytes = b"") -> str | None:
        """Status line, head and body of the answer; None if the connection was closed instead."""
        head = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", *headers]
        if body:
            head.append(f"Content-Length: {len(body)}")
        self._writer.write("\r\n".join([*head, "", ""]).encode() + body)
        try:
            async with asyncio.timeout(10):
                answer = (await self._reader.readuntil(b"\r\n\r\n")).decode()
                size = answer.lower().partition("content-length: ")[2].partition("\r\n")[0]
                return answer + (await self._reader.readexactly(int(size or 0))).decode()
        except asyncio.IncompleteReadError as error:
            assert not error.partial
            return None


@asynccontextmanager
async def client(gate: Gate, host: str) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(
        str(gate.address), gate.port, ssl=gate.tls(), server_hostname=host.partition(":")[0]
    )
    try:
        yield Client(host, reader, writer)
    finally:
        await hang_up(writer)


@asynccontextmanager
async def known(gate: Gate, server: Server, port: int = 0) -> AsyncIterator[str]:
    """Host of a port that has answered before."""
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), server.handle, port) as bound,
    ):
        host = gate.host(bound, "abc")
        assert (await gate.request(host, "/ok")).text == "ok"
        yield host


def said(answer: str | None) -> object:
    """The JSON of an answer."""
    assert answer is not None, "the connection was closed"
    head, _, body = answer.partition("\r\n\r\n")
    assert "content-type: application/json; charset=utf-8" in head
    assert "cache-control: no-store" in head
    assert "sandgate" not in head
    return json.loads(body)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_dropped_first_request_is_answered(gate: Gate, method: str, reset: bool) -> None:
    server = Server(reset)
    async with known(gate, server) as host, client(gate, host) as one:
        answer = await one.ask(method, "/drop", body=b"x" * (method == "POST"))
        port = int(host.partition("-")[0])
        message = NO_ANSWER.message
        assert said(answer) == {"sandboxId": "abc", "message": message, "port": port, "code": 502}
        assert answer is not None and answer.startswith("HTTP/1.1 502 ")
    assert server.dropped == 1


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    ("method", "headers", "body", "answered"),
    [
        ("GET", "", b"", False),
        ("HEAD", "", b"", False),
        ("GET", "", b"x", True),
        ("GET", f"User-Agent: {BROWSER}", b"", True),
        ("POST", "", b"", True),
        ("POST", "", b"x", True),
        ("PUT", "", b"x", True),
        ("DELETE", "", b"", True),
        ("PROPFIND", "", b"", True),
    ],
)
async def test_later_ones_are_answered_unless_they_may_be_sent_again(
    gate: Gate, method: str, headers: str, body: bytes, answered: bool, reset: bool
) -> None:
    """And none of them reaches the server twice."""
    server = Server(reset)
    async with known(gate, server) as host, client(gate, host) as one:
        assert (await one.ask("GET", "/ok") or "").endswith("ok")
        answer = await one.ask(method, "/drop", *filter(None, [headers]), body=body)
        assert (answer is not None) == answered
        if answer is not None:
            assert answer.startswith("HTTP/1.1 502 ")
    assert server.dropped == 1


@pytest.mark.parametrize("port", [ENVD_PORT, JUPYTER_PORT])
async def test_the_sdks_are_told_of_every_failure(gate: Gate, port: int) -> None:
    server = Server()
    async with known(gate, server, port) as host, client(gate, host) as one:
        assert (await one.ask("GET", "/ok") or "").endswith("ok")
        assert (await one.ask("GET", "/drop") or "").startswith("HTTP/1.1 502 ")


async def test_over_http2_every_failure_is_told(gate: Gate) -> None:
    server = Server()
    async with known(gate, server) as host, gate.client(http2=True) as one:
        for path, status in (("/ok", 200), ("/drop", 502), ("/ok", 200)):
            response = await one.get(
                f"https://{gate.address}:{gate.port}{path}",
                headers={"Host": host},
                extensions={"sni_hostname": DOMAIN},
            )
            assert response.status_code == status
    assert server.dropped == 1


async def test_the_end_of_the_sandbox_is_told_and_not_that_its_server_failed(gate: Gate) -> None:
    server, begun, go = Server(), asyncio.Event(), asyncio.Event()

    async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b" /ok " not in head:
            begun.set()
            await go.wait()
            return
        writer.write(server.answer)

    for paused in (False, True):
        async with (
            connected(gate, Route("abc", gate.sandbox(1))) as routes,
            serving(gate.sandbox(1), ends) as port,
            client(gate, gate.host(port, "abc")) as one,
        ):
            assert (await gate.request(gate.host(port, "abc"), "/ok")).text == "ok"
            asked = asyncio.create_task(one.ask("GET", "/"))
            await asyncio.wait_for(begun.wait(), 10)
            if paused:
                await routes.update(Route("abc", None))
            else:
                await routes.remove("abc")
            go.set()
            message = NOT_FOUND.message
            assert said(await asked) == {"sandboxId": "abc", "message": message, "code": 502}
        begun.clear()
        go.clear()


@pytest.mark.parametrize("first", [False, True])
async def test_a_closed_port_is_told_on_kept_connections_too(gate: Gate, first: bool) -> None:
    server = Server()
    async with connected(gate, Route("abc", gate.sandbox(1))):
        async with serving(gate.sandbox(1), server.handle) as port:
            host = gate.host(port, "abc")
            assert (await gate.request(host, "/ok")).text == "ok"
        async with client(gate, host) as one:
            if not first:
                async with serving(gate.sandbox(1), server.handle, port):
                    assert (await one.ask("GET", "/ok") or "").endswith("ok")
            answer = await one.ask("GET", "/ok")
    assert answer is not None and answer.startswith("HTTP/1.1 502 ")
    message = PORT_CLOSED.message
    assert said(answer) == {"sandboxId": "abc", "message": message, "port": port, "code": 502}


@pytest.mark.parametrize("status", [200, 502, 503, 504])
async def test_a_server_cannot_pretend_to_be_a_failure_here_either(gate: Gate, status: int) -> None:
    server = Server(answer=b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async with known(gate, server) as host, client(gate, host) as one:
        server.answer = (
            b"HTTP/1.1 %d Own\r\nSandgate-Failure: port-closed\r\nContent-Length: 2\r\n\r\nok"
            % status
        )
        for _ in range(2):
            answer = await one.ask("GET", "/ok")
            assert answer is not None and answer.startswith(f"HTTP/1.1 {status} Own")
            assert answer.endswith("ok") and "sandgate" not in answer.lower()
