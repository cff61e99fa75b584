"""Requests that resume their sandbox: who may, and what the ingress is answered."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from node.fakes import World, lost, request
from sandgate.envd.auth import sign
from sandgate.node.doorbell import Knock, KnockDenied, serve_doorbell
from sandgate.node.errors import SandboxNotFound
from sandgate.runtime.client import LauncherError

ENVD = 49983
TOKEN = "t" * 64


def knock(**changes: object) -> Knock:
    values = {
        "sandbox_id": "i1",
        "port": ENVD,
        "method": "GET",
        "target": "/",
        "access_token": "",
    }
    return Knock(**{**values, **changes})  # type: ignore[arg-type]  # by name


def signed(operation: str, expiration: str | None = None) -> str:
    signature = sign(TOKEN, "/a b", "read" if operation == "read" else "write", "", expiration)
    end = "" if expiration is None else f"&signature_expiration={expiration}"
    return f"/files?path=%2Fa+b&signature={signature.replace('+', '%2B')}{end}"


@pytest.mark.parametrize(
    ("given", "enters"),
    [
        ({"port": 3000}, True),
        ({}, False),
        ({"access_token": TOKEN}, True),
        ({"access_token": TOKEN[:-1]}, False),
        ({"target": signed("read")}, True),
        ({"target": signed("read"), "method": "POST"}, False),
        ({"target": signed("write"), "method": "POST"}, True),
        ({"target": signed("read"), "method": "DELETE"}, False),
        ({"target": signed("read"), "access_token": "wrong"}, False),
        ({"target": signed("read").replace("/files", "/other")}, False),
        ({"target": signed("read", "2000")}, True),
        ({"target": signed("read", "999")}, False),
        ({"target": "/files?path=/a"}, False),
        ({"target": "/init", "method": "POST"}, False),
    ],
)
def test_envd_is_entered_as_envd_itself_would_allow(given: dict[str, object], enters: bool) -> None:
    assert knock(**given).may_enter(TOKEN, now=1000.0) is enters
    assert knock(**given).may_enter(None, now=1000.0)


async def test_a_request_resumes_a_sandbox_that_wants_it(world: World) -> None:
    record = await world.node.create(request(timeout=10, auto_resume=True))
    await world.node.pause(record.sandbox_id)
    (route,) = world.ingress.routes.values()
    assert route.address is None
    assert [item.address for item in world.node.routes()] == [None]
    with pytest.raises(KnockDenied):
        await world.node.wake(knock(sandbox_id=record.sandbox_id))
    assert world.node.get(record.sandbox_id).state == "paused"
    address = await world.node.wake(knock(sandbox_id=record.sandbox_id, port=80))
    assert world.ingress.routes[record.sandbox_id].address == address
    left = (world.node.get(record.sandbox_id).end_at - datetime.now(UTC)).total_seconds()
    assert 295 < left <= 300
    assert await world.node.wake(knock(sandbox_id=record.sandbox_id, port=80)) == address


async def test_a_longer_time_to_live_is_kept(world: World) -> None:
    record = await world.node.create(request(timeout=1000, auto_resume=True))
    await world.node.pause(record.sandbox_id)
    await world.node.wake(knock(sandbox_id=record.sandbox_id, port=80))
    left = (world.node.get(record.sandbox_id).end_at - datetime.now(UTC)).total_seconds()
    assert 995 < left <= 1000


async def test_others_are_not_found(world: World) -> None:
    record = await world.node.create(request())
    await world.node.pause(record.sandbox_id)
    assert world.ingress.routes == {}
    for name in (record.sandbox_id, "inobody"):
        with pytest.raises(SandboxNotFound):
            await world.node.wake(knock(sandbox_id=name, port=80))
    assert world.node.get(record.sandbox_id).state == "paused"


async def test_many_requests_resume_once(world: World) -> None:
    record = await world.node.create(request(auto_resume=True))
    gate = world.launcher.gates["pause"] = asyncio.Event()
    pause = asyncio.create_task(world.node.pause(record.sandbox_id))
    await asyncio.sleep(0.02)
    knocks = [world.node.wake(knock(sandbox_id=record.sandbox_id, port=80)) for _ in range(20)]
    answers = asyncio.gather(*knocks)
    await asyncio.sleep(0.02)
    assert not answers.done()  # the pause is still under way
    gate.set()
    await pause
    assert len(set(await answers)) == 1
    assert world.log.count("launcher.resume") == 1


@pytest.fixture
async def bell(world: World, tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "wake.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    server = await serve_doorbell(listener, world.node.wake)
    yield path
    server.close()


async def ask(path: Path, *lines: str) -> str:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write("".join(f"{line}\n" for line in lines).encode())
    answer = await reader.read()
    writer.close()
    return answer.decode()


async def test_the_ingress_is_answered_in_a_line(world: World, bell: Path) -> None:
    record = await world.node.create(request(auto_resume=True))
    name = record.sandbox_id
    await world.node.pause(name)
    assert await ask(bell, "inobody", "80", "GET", "/", "") == "gone\n"
    assert await ask(bell, name, str(ENVD), "GET", "/", "wrong") == "denied\n"
    assert await ask(bell, name, "eighty", "GET", "/", "") == "failed\n"
    assert await ask(bell, name, "80", "GET", "/" * 20_000, "") == "failed\n"
    world.launcher.failures["resume"] = [lost(), LauncherError("no")]
    assert await ask(bell, name, "80", "GET", "/", "") == "failed\n"
    assert await ask(bell, name, "80", "GET", "/", "") == "failed\n"
    answer = await ask(bell, name, str(ENVD), "GET", "/", str(record.envd_token))
    assert answer == f"running {world.launcher.sandboxes[name].address}\n"
