"""The live route table: acknowledged changes, restarts, and what must not get through."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import stat
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from ingress.harness import TOKEN, Gate, connected, echo, running, seen_headers, serving
from sandgate.ingress.client import IngressClient, IngressError
from sandgate.ingress.routes import Route, RouteError


async def test_a_change_holds_for_the_next_request(gate: Gate) -> None:
    async with (
        connected(gate) as client,
        serving(gate.sandbox(1), echo) as port,
        serving(gate.sandbox(2), echo, port),
    ):
        host = gate.host(port, "abc")
        for _ in range(10):
            assert (await gate.request(host)).status_code == 502
            await client.add(Route("abc", gate.sandbox(1)))
            assert (await gate.request(host)).status_code == 200
            await client.update(Route("abc", gate.sandbox(1), TOKEN, "masked"))
            assert (await gate.request(host)).status_code == 403
            headers = {"e2b-traffic-access-token": TOKEN}
            assert seen_headers(await gate.request(host, headers=headers))["host"] == "masked"
            await client.update(Route("abc", gate.sandbox(2)))
            assert seen_headers(await gate.request(host))["host"] == host
            await client.remove("abc")


async def test_adding_twice_replaces_and_removing_twice_is_no_error(gate: Gate) -> None:
    async with connected(gate) as client, serving(gate.sandbox(1), echo) as port:
        await client.add(Route("abc", gate.sandbox(2)))
        await client.add(Route("abc", gate.sandbox(1)))
        assert (await gate.request(gate.host(port, "abc"))).status_code == 200
        await client.remove("abc")
        await client.remove("abc")
        assert "not found" in (await gate.request(gate.host(port, "abc"))).text


async def test_removing_a_route_lets_open_connections_live(gate: Gate) -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await go_on.wait()
        writer.write(b"cd")
        await writer.drain()

    async with (
        connected(gate, Route("abc", gate.sandbox(1))) as client,
        serving(gate.sandbox(1), slow) as port,
    ):
        request = asyncio.create_task(gate.request(gate.host(port, "abc")))
        await asyncio.sleep(0.2)
        await client.remove("abc")
        go_on.set()
        assert (await request).text == "abcd"


async def test_connecting_replaces_whatever_routes_were_there(gate: Gate) -> None:
    async with serving(gate.sandbox(1), echo) as port:
        async with connected(gate, Route("old", gate.sandbox(1))):
            assert (await gate.request(gate.host(port, "old"))).status_code == 200
        async with connected(gate, Route("new", gate.sandbox(1))):
            assert (await gate.request(gate.host(port, "old"))).status_code == 502
            assert (await gate.request(gate.host(port, "new"))).status_code == 200


async def test_after_a_crash_all_routes_come_back_and_changes_wait_for_it(tmp_path: Path) -> None:
    routes = [Route("abc", IPv4Address("127.0.0.1"))]
    with running(Gate(tmp_path)) as gate:
        routes = [Route("abc", gate.sandbox(1))]
        client = IngressClient(gate.config.admin_socket, lambda: routes)
        await client.start()
        try:
            async with serving(gate.sandbox(1), echo) as port:
                for round_ in range(3):
                    os.kill(gate.pid, signal.SIGKILL)
                    gate.stop()
                    late = Route(f"late{round_}", gate.sandbox(1))
                    adding = asyncio.create_task(client.add(late))
                    await asyncio.sleep(0.05)
                    assert not client.connected
                    assert not adding.done()
                    await asyncio.to_thread(gate.start)
                    await adding
                    assert client.connected
                    assert (await gate.request(gate.host(port, "abc"))).status_code == 200
                    assert (await gate.request(gate.host(port, late.sandbox_id))).status_code == 200
        finally:
            await client.close()


async def test_requests_wait_until_a_restarted_haproxy_knows_its_sandboxes(tmp_path: Path) -> None:
    with running(Gate(tmp_path)) as gate:
        async with serving(gate.sandbox(1), echo) as port:
            route = Route("abc", gate.sandbox(1))
            async with connected(gate, route):
                assert (await gate.request(gate.host(port, "abc"))).status_code == 200
            gate.stop()
            gate.start()
            waiting = asyncio.create_task(gate.request(gate.host(port, "abc")))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            async with connected(gate, route):
                assert (await waiting).status_code == 200
                gone = await gate.request(gate.host(port, "xyz"))
                assert gone.json()["message"] == "The sandbox was not found"


async def test_haproxy_that_nobody_tells_of_sandboxes_says_that_it_is_starting(
    tmp_path: Path,
) -> None:
    with running(Gate(tmp_path)) as gate:
        response = await gate.request(gate.host(80, "abc"))
        assert response.status_code == 503
        assert "does not know its sandboxes yet" in response.json()["message"]


async def test_no_haproxy_is_an_error_in_time_that_says_why(tmp_path: Path) -> None:
    client = IngressClient(tmp_path / "none.sock", list, timeout=0.2)
    with pytest.raises(IngressError, match=r"none\.sock within 0\.2 s.*No such file"):
        await client.start()
    with pytest.raises(IngressError, match="did not acknowledge the route of abc"):
        await client.add(Route("abc", IPv4Address("198.18.0.16")))
    await client.close()


async def test_a_start_that_failed_goes_on_in_the_background(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    client = IngressClient(gate.config.admin_socket, list, timeout=0.2)
    with pytest.raises(IngressError):
        await client.start()
    with running(gate):
        for _ in range(20):
            with contextlib.suppress(IngressError):
                await client.start()
                break
        assert client.connected
        await client.close()


async def test_an_abandoned_change_does_not_spoil_the_next(gate: Gate) -> None:
    """Its answer would be taken for that of the next: the connection is given up instead."""
    pushes = 0

    def routes() -> list[Route]:
        nonlocal pushes
        pushes += 1
        return []

    client = IngressClient(gate.config.admin_socket, routes)
    await client.start()
    try:
        async with serving(gate.sandbox(1), echo) as port:
            for round_ in range(2, 12):
                task = asyncio.create_task(client.add(Route("lost", gate.sandbox(2))))
                await asyncio.sleep(0)  # it has been sent, and not been answered
                task.cancel()
                await client.add(Route("abc", gate.sandbox(1)))
                assert pushes == round_
                assert (await gate.request(gate.host(port, "abc"))).status_code == 200
                await client.remove("abc")
    finally:
        await client.close()


async def test_routes_that_cannot_be_listed_are_listed_again(
    gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0

    def routes() -> Iterator[Route]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the store is busy")
        yield Route("abc", gate.sandbox(1))

    client = IngressClient(gate.config.admin_socket, lambda: list(routes()))
    with caplog.at_level(logging.CRITICAL):
        await client.start()
    await client.close()
    assert calls == 2


async def test_a_refusal_of_haproxy_is_an_error_without_the_token(gate: Gate) -> None:
    async with connected(gate) as client, connected(gate) as other:
        await client.add(Route("abc", gate.sandbox(1), TOKEN))
        await other.remove("abc")  # behind the client's back, but unknown to `other`
        async with connected(gate):
            pass  # replaces the routes by none
        with pytest.raises(IngressError, match="refused to set a route") as caught:
            await client.update(Route("abc", gate.sandbox(1), TOKEN))
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    "evil", ["abc;disable frontend public", "abc\nshow info", "a b", "@1", "#0"]
)
async def test_nothing_but_an_id_reaches_the_command_line(gate: Gate, evil: str) -> None:
    async with connected(gate) as client:
        with pytest.raises(RouteError):
            await client.remove(evil)


async def test_ten_thousand_routes_are_pushed_and_changed_quickly(gate: Gate) -> None:
    first = IPv4Address("198.18.0.16")
    routes = [Route(f"s{n:06}", first + n, "t" * 64, "localhost:${PORT}") for n in range(10_000)]
    client = IngressClient(gate.config.admin_socket, lambda: routes)
    started = time.perf_counter()
    await client.start()
    pushed = time.perf_counter() - started
    try:
        async with serving(gate.sandbox(1), echo) as port:
            started = time.perf_counter()
            for number in range(200):
                await client.add(Route(f"new{number}", gate.sandbox(1)))
                await client.remove(f"new{number}")
            each = (time.perf_counter() - started) / 400
            await client.add(Route("abc", gate.sandbox(1)))
            assert (await gate.request(gate.host(port, "abc"))).status_code == 200
            for number in (0, 4999, 9999):
                response = await gate.request(gate.host(port, f"s{number:06}"))
                assert response.status_code == 403
    finally:
        await client.close()
    # Generous: measured 0.05 s and 0.1 ms on two busy cores.
    assert pushed < 2
    assert each < 0.005


async def test_the_admin_socket_is_for_its_owner_alone(gate: Gate) -> None:
    mode = stat.S_IMODE(gate.config.admin_socket.stat().st_mode)
    assert mode == 0o600
    inner = ("connector-new", "connector-known", "public-h1", "public-h2", "inside-h1", "inside-h2")
    for proxy in inner:
        assert stat.S_IMODE(gate.config.socket(proxy).stat().st_mode) == 0o600
