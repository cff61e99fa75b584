"""Requests for paused sandboxes that a request resumes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ingress.harness import TOKEN, Gate, connected, echo, running, serving
from sandgate.ingress.pages import UNAUTHORIZED
from sandgate.ingress.routes import ENVD_PORT, Route


@dataclass
class Doorbell:
    """Answers what it is told to, and keeps what it was asked."""

    answer: bytes = b"failed\n"
    delay: float = 0
    asked: list[list[str]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append([(await reader.readline()).decode().rstrip("\n") for _ in range(5)])
        await asyncio.sleep(self.delay)
        writer.write(self.answer)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def waking(tmp_path: Path, route: Route) -> AsyncIterator[tuple[Gate, Doorbell]]:
    gate, bell = Gate(tmp_path), Doorbell()
    path = tmp_path / "wake.sock"
    gate.configure(wake_socket=path)
    server = await asyncio.start_unix_server(bell.handle, path)
    try:
        with running(gate):
            async with connected(gate, route):
                yield gate, bell
    finally:
        server.close()


async def test_the_request_waits_and_is_served(tmp_path: Path) -> None:
    async with waking(tmp_path, Route("abc", None)) as (gate, bell):
        async with serving(gate.sandbox(1), echo) as port:
            bell.answer, bell.delay = f"running {gate.sandbox(1)}\n".encode(), 1.0
            response = await gate.request(
                gate.host(port, "abc"),
                "/a%0Ab?c=d",
                method="POST",
                content=b"body",
                headers={"X-Access-Token": "secret"},
            )
        assert response.status_code == 200
        assert response.text.startswith("POST /a%0Ab?c=d HTTP/1.1")
        assert bell.asked == [["abc", str(port), "POST", "/a%0Ab?c=d", "secret"]]


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (b"denied\n", 401, UNAUTHORIZED.message),
        (b"gone\n", 502, "The sandbox was not found"),
        (b"failed\n", 503, "The sandbox is paused and could not be resumed"),
        (b"nonsense 1 2 3\n", 503, "The sandbox is paused and could not be resumed"),
        (b"", 503, "The sandbox is paused and could not be resumed"),
    ],
)
async def test_what_cannot_be_resumed_is_told(
    tmp_path: Path, answer: bytes, status: int, message: str
) -> None:
    async with waking(tmp_path, Route("abc", None)) as (gate, bell):
        bell.answer = answer
        response = await gate.request(gate.host(3000, "abc"))
        assert (response.status_code, response.json()["message"]) == (status, message)


async def test_nobody_is_asked_for_who_may_not_enter(tmp_path: Path) -> None:
    async with waking(tmp_path, Route("abc", None, TOKEN)) as (gate, bell):
        assert (await gate.request(gate.host(3000, "abc"))).status_code == 403
        headers = {"e2b-traffic-access-token": TOKEN[:-1] + "x"}
        assert (await gate.request(gate.host(3000, "abc"), headers=headers)).status_code == 403
        assert bell.asked == []
        headers = {"e2b-traffic-access-token": TOKEN}
        assert (await gate.request(gate.host(3000, "abc"), headers=headers)).status_code == 503
        assert len(bell.asked) == 1


async def test_asking_whether_it_runs_wakes_nobody(tmp_path: Path) -> None:
    async with waking(tmp_path, Route("abc", None)) as (gate, bell):
        response = await gate.request(gate.host(ENVD_PORT, "abc"), "/health")
        assert response.status_code == 502
        assert response.json()["message"] == "The sandbox was not found"
        assert bell.asked == []


async def test_without_control_it_is_503_at_once(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.configure(wake_socket=tmp_path / "nobody.sock")
    with running(gate):
        async with connected(gate, Route("abc", None)):
            async with asyncio.timeout(5):
                assert (await gate.request(gate.host(3000, "abc"))).status_code == 503
            long = await gate.request(gate.host(3000, "abc"), "/" + "a" * 9000)
            assert long.status_code == 503


@pytest.mark.parametrize("asleep", [False, True])
async def test_one_who_is_cut_off_by_the_end_is_told_so(gate: Gate, asleep: bool) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))) as client:

        async def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if asleep:
                await client.update(Route("abc", None))
            else:
                await client.remove("abc")
            writer.transport.abort()

        async with serving(gate.sandbox(1), ends) as port:
            response = await gate.request(gate.host(port, "abc"))
        assert response.status_code == 502
        assert response.json() == {
            "sandboxId": "abc",
            "message": "The sandbox was not found",
            "code": 502,
        }
