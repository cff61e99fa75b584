"""Private sandboxes (the traffic access token) and masked hosts."""

from __future__ import annotations

import asyncio

import pytest

from ingress.harness import TOKEN, Gate, connected, echo, seen_headers, serving
from sandgate.ingress.routes import ENVD_PORT, Route

HEADER = "e2b-traffic-access-token"
MISSING = (
    "Sandbox is secured with traffic access token. Token header 'e2b-traffic-access-token' "
    "is missing"
)
WRONG = (
    "Sandbox is secured with traffic access token. Provided token in header "
    "'e2b-traffic-access-token' is invalid"
)


@pytest.mark.parametrize("http2", [False, True])
async def test_without_the_token_403_and_with_it_through(gate: Gate, http2: bool) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1), TOKEN)),
        serving(gate.sandbox(1), echo) as port,
    ):
        host = gate.host(port, "abc")
        response = await gate.request(host, http2=http2)
        assert response.status_code == 403
        assert response.json() == {"sandboxId": "abc", "message": MISSING, "code": 403}
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        for wrong in ("", "x", TOKEN[:-1], TOKEN + "0", TOKEN.upper(), f"{TOKEN}, {TOKEN}", "-"):
            response = await gate.request(host, headers={HEADER: wrong}, http2=http2)
            assert response.status_code == 403
            assert response.json() == {"sandboxId": "abc", "message": WRONG, "code": 403}
        for name in (HEADER, "E2B-Traffic-Access-Token"):
            headers = {name: TOKEN} if not http2 else {name.lower(): TOKEN}
            response = await gate.request(host, headers=headers, http2=http2)
            assert response.status_code == 200
            assert HEADER not in seen_headers(response)
            assert TOKEN not in response.text


@pytest.mark.parametrize("tokens", [("bad", TOKEN), (TOKEN, "bad"), (TOKEN, TOKEN), ("", TOKEN)])
@pytest.mark.parametrize("http2", [False, True])
async def test_several_tokens_are_refused_whichever_is_right(
    gate: Gate, tokens: tuple[str, str], http2: bool
) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1), TOKEN), Route("open", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        headers = [(HEADER, token) for token in tokens]
        response = await gate.request(gate.host(port, "abc"), headers=headers, http2=http2)
        assert response.status_code == 403
        assert response.json() == {"sandboxId": "abc", "message": WRONG, "code": 403}
        response = await gate.request(gate.host(port, "open"), headers=headers, http2=http2)
        assert response.status_code == 200
        assert HEADER not in seen_headers(response)


async def test_the_token_is_asked_for_before_the_port_is_tried(gate: Gate) -> None:
    contacts = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal contacts
        contacts += 1

    async with connected(gate, Route("abc", gate.sandbox(1), TOKEN)):
        started = asyncio.get_running_loop().time()
        assert (await gate.request(gate.host(3001, "abc"))).status_code == 403
        assert asyncio.get_running_loop().time() - started < 0.5, "no attempt, no retry"
        response = await gate.request(gate.host(3001, "abc"), headers={HEADER: TOKEN})
        assert response.status_code == 502
        assert response.json()["message"] == "The sandbox is running but port is not open"
        async with serving(gate.sandbox(1), count) as port:
            await gate.request(gate.host(port, "abc"))
            await gate.request(gate.host(port, "abc"), headers={HEADER: "wrong"})
            assert contacts == 0
            await gate.request(gate.host(port, "abc"), headers={HEADER: TOKEN})
            assert contacts == 1


async def test_the_token_of_one_sandbox_does_not_open_another(gate: Gate) -> None:
    async with (
        connected(
            gate,
            Route("abc", gate.sandbox(1), TOKEN),
            Route("other", gate.sandbox(2), TOKEN[::-1]),
        ),
        serving(gate.sandbox(2), echo) as port,
    ):
        response = await gate.request(gate.host(port, "other"), headers={HEADER: TOKEN})
        assert (response.status_code, response.json()["message"]) == (403, WRONG)


@pytest.mark.parametrize("private", [False, True])
async def test_envd_needs_no_traffic_token_and_never_sees_one(gate: Gate, private: bool) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1), TOKEN if private else None, "masked")),
        serving(gate.sandbox(1), echo, ENVD_PORT),
    ):
        host = gate.host(ENVD_PORT, "abc")
        headers = {"X-Access-Token": "envd's own", "Authorization": "Basic dXNlcjo="}
        seen = seen_headers(await gate.request(host, headers=headers))
        assert seen["x-access-token"] == "envd's own"
        assert seen["authorization"] == "Basic dXNlcjo="
        assert seen["host"] == host, "not masked either"
        assert "x-forwarded-host" not in seen
        response = await gate.request(host, headers={HEADER: TOKEN})
        assert HEADER not in seen_headers(response)


async def test_the_token_is_taken_off_public_and_header_routed_requests_too(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        response = await gate.request(gate.host(port, "abc"), headers={HEADER: TOKEN})
        assert HEADER not in seen_headers(response)
        routing = {"E2b-Sandbox-Id": "abc", "E2b-Sandbox-Port": str(port), HEADER: TOKEN}
        response = await gate.request("127.0.0.1", headers=routing)
        assert response.status_code == 200
        assert HEADER not in seen_headers(response)


async def test_header_routing_asks_for_the_token_as_well(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1), TOKEN)),
        serving(gate.sandbox(1), echo) as port,
    ):
        routing = {"E2b-Sandbox-Id": "abc", "E2b-Sandbox-Port": str(port)}
        assert (await gate.request("localhost", headers=routing)).status_code == 403
        # The port is a number: another spelling of the envd port is the envd port.
        for spelling in ("49983", "049983", "00000049983"):
            routing["E2b-Sandbox-Port"] = spelling
            response = await gate.request("localhost", headers=routing)
            assert response.json()["port"] == ENVD_PORT


async def test_preflights_get_no_answer_of_the_gate(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        headers = {"Origin": "https://a.example", "Access-Control-Request-Method": "PUT"}
        response = await gate.request(gate.host(port, "abc"), method="OPTIONS", headers=headers)
        assert response.text.startswith("OPTIONS / HTTP/1.1\r\n")
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("localhost:${PORT}", "localhost:{port}"),
        ("localhost", "localhost"),
        ("${PORT}.example.com:${PORT}", "{port}.example.com:{port}"),
        ("a${PORT}b-${PORT}.${PORT}.c", "a{port}b-{port}.{port}.c"),
        ("[::1]:${PORT}", "[::1]:{port}"),
        ("p" + "${PORT}." * 20 + "x", "p" + "{port}." * 20 + "x"),
    ],
)
@pytest.mark.parametrize("http2", [False, True])
async def test_a_mask_becomes_the_host_with_every_port_replaced(
    gate: Gate, mask: str, expected: str, http2: bool
) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1), mask_host=mask)),
        serving(gate.sandbox(1), echo) as port,
    ):
        host = gate.host(port, "abc")
        response = await gate.request(
            host, headers={"X-Forwarded-Host": "spoofed.example"}, http2=http2
        )
        seen = seen_headers(response)
        assert seen["host"] == expected.format(port=port)
        assert seen["x-forwarded-host"] == host
        assert "spoofed" not in response.text
        assert response.text.lower().count("\r\nhost:") == 1


async def test_without_a_mask_nothing_is_added_to_a_request(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        seen = seen_headers(await gate.request(gate.host(port, "abc"), headers={"X-Own": "1"}))
        # What httpx sends, and that the connection carries one request.
        assert set(seen) == {
            "host", "accept", "accept-encoding", "user-agent", "x-own", "connection"
        }  # fmt: skip


async def test_a_server_cannot_pretend_to_be_a_failure_of_the_gate(gate: Gate) -> None:
    async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(
            b"HTTP/1.1 200 OK\r\nSandgate-Failure: port-closed\r\nContent-Length: 2\r\n\r\nok"
        )

    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), pretend) as port,
    ):
        response = await gate.request(gate.host(port, "abc"))
        assert (response.status_code, response.text) == (200, "ok")
        assert "sandgate-failure" not in response.headers
