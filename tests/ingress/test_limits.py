"""What the gate bounds: heads, methods, and the connections of one sandbox's visitors."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import httpx
import pytest

from ingress.harness import (
    DOMAIN,
    Gate,
    answering,
    connected,
    echo,
    hang_up,
    running,
    seen_headers,
    serving,
    serving_api,
)
from sandgate.ingress.pages import ERRORS
from sandgate.ingress.routes import ENVD_PORT, Route

LARGE = "x" * 30_720
MANY = {f"x-{number}": "y" for number in range(450)}


@pytest.mark.parametrize("http2", [False, True])
async def test_30_kb_of_headers_and_450_of_them_pass_both_ways(gate: Gate, http2: bool) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in MANY.items())
    large = f"HTTP/1.1 200 OK\r\nX-Large: {LARGE}\r\nContent-Length: 2\r\n\r\nok".encode()
    many = f"HTTP/1.1 200 OK\r\n{head}Content-Length: 2\r\n\r\nok".encode()
    async with (
        connected(gate, Route("abc", gate.sandbox(1), mask_host="localhost:${PORT}")),
        serving(gate.sandbox(1), echo) as port,
        serving(gate.sandbox(1), answering(large)) as port_large,
        serving(gate.sandbox(1), answering(many)) as port_many,
    ):
        host = gate.host(port, "abc")
        response = await gate.request(host, headers={"x-large": LARGE}, http2=http2)
        assert seen_headers(response)["x-large"] == LARGE
        response = await gate.request(host, headers=MANY, http2=http2)
        assert MANY.items() <= seen_headers(response).items()
        response = await gate.request(host, "/" + LARGE, http2=http2)
        assert response.text.startswith(f"GET /{LARGE} HTTP/1.1\r\n")
        response = await gate.request(gate.host(port_large, "abc"), http2=http2)
        assert (response.headers["x-large"], response.text) == (LARGE, "ok")
        response = await gate.request(gate.host(port_many, "abc"), http2=http2)
        assert MANY.items() <= dict(response.headers).items()


async def test_an_answer_with_too_large_a_head_says_so(gate: Gate) -> None:
    large = f"HTTP/1.1 200 OK\r\nX-Large: {LARGE}{LARGE}\r\n\r\n".encode()
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), answering(large)) as port,
    ):
        response = await gate.request(gate.host(port, "abc"))
        assert response.status_code == 502
        assert "more than 30 KB of headers" in response.json()["message"]


@pytest.mark.parametrize("method", ["FOO", "get", "TRACE", "PROPFIND", "CONNECT", "X" * 20])
async def test_the_api_is_not_asked_for_methods_that_do_not_exist(gate: Gate, method: str) -> None:
    """Without anyone in the API's place, so that a request passed on would be 503."""
    target = f"api.{DOMAIN}:443" if method == "CONNECT" else "/v2/sandboxes"
    status, headers, body = await gate.raw(
        f"{method} {target} HTTP/1.1\r\nHost: api.{DOMAIN}\r\n\r\n".encode()
    )
    assert status.startswith("HTTP/1.1 405 ")
    assert headers["content-type"] == "application/json; charset=utf-8"
    assert headers["allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert json.loads(body) == {"code": 405, "message": "This method is not possible here"}


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("http2", [False, True])
async def test_the_api_is_asked_for_methods_that_exist(
    gate: Gate, method: str, http2: bool
) -> None:
    async with serving_api(gate.config.control_socket, echo):
        response = await gate.request(f"api.{DOMAIN}", method=method, http2=http2)
        assert response.status_code == 200
        assert method == "HEAD" or response.text.startswith(f"{method} / HTTP/1.1\r\n")


async def test_servers_in_sandboxes_may_know_other_methods(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        response = await gate.request(gate.host(port, "abc"), method="PROPFIND")
        assert response.text.startswith("PROPFIND / HTTP/1.1\r\n")


@pytest.mark.parametrize("port", [3000, ENVD_PORT])
async def test_a_host_longer_than_any_name_is_refused(gate: Gate, port: int) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))):
        for host in (f"{port}-abc.{'a' * 300}.{DOMAIN}", f"{port}-abc.{DOMAIN}:{'0' * 300}"):
            response = await gate.request(host)
            assert (response.status_code, response.text) == (400, "Invalid host")


async def test_a_body_that_turns_out_to_be_no_http_is_400_in_json(gate: Gate) -> None:
    async def read(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), read) as port,
        serving_api(gate.config.control_socket, read),
    ):
        for host in (f"api.{DOMAIN}", gate.host(port, "abc")):
            head = f"POST / HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
            status, headers, body = await gate.raw(head.encode(), b"no chunk\r\n", host=host)
            assert status.startswith("HTTP/1.1 400 ")
            assert headers["content-type"] == "application/json; charset=utf-8"
            assert json.loads(body)["code"] == 400


def test_what_haproxy_says_by_itself_is_written_as_json(gate: Gate) -> None:
    """HAProxy before 3.3 has its own page when it cannot even read the head."""
    configured = gate.config.config_file.read_text()
    for error in ERRORS:
        assert f"    errorfile {error.status} {error.file(gate.config.directory)}\n" in configured
        head, _, body = error.file(gate.config.directory).read_bytes().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % error.status)
        assert b"Content-Length: %d\r\n" % len(body) in head
        assert json.loads(body) == {"code": error.status, "message": error.message}


async def test_visitors_of_one_sandbox_leave_room_for_others(tmp_path: Path) -> None:
    gate = Gate(tmp_path, maxconn=64)
    with running(gate):
        async with (
            connected(gate, Route("abc", gate.sandbox(1)), Route("other", gate.sandbox(1))),
            serving(gate.sandbox(1), echo) as port,
            AsyncExitStack() as idle,
        ):
            host = gate.host(port, "abc")
            for number in range(32):
                # Each asks by another port, and then nothing.
                name = f"{1000 + number}-ABC.{DOMAIN}"
                _, writer = await asyncio.open_connection(
                    str(gate.address), gate.port, ssl=gate.tls(), server_hostname=name
                )
                idle.push_async_callback(hang_up, writer)
            with pytest.raises(httpx.TransportError):
                await gate.request(host)
            for open_one in (gate.host(port, "other"), f"other.{DOMAIN}"):
                assert (await gate.request(open_one)).status_code in (200, 400)
            await idle.aclose()
            async with asyncio.timeout(5):
                while True:
                    with suppress(httpx.TransportError):
                        assert (await gate.request(host)).status_code == 200
                        break
