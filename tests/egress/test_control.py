from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandgate.egress.client import EgressClient, EgressRefused, EgressUnavailable
from sandgate.egress.control import ControlServer, RequestError, parse_wire_policy
from sandgate.egress.table import SandboxEntry, SandboxTable
from sandgate.policy import EgressPolicy, parse_policy

RANGE = IPv4Network("198.18.0.0/16")
FIRST = IPv4Address("198.18.0.16")
SECOND = IPv4Address("198.18.0.17")
OPEN = EgressPolicy()
CLOSED = parse_policy(["good.test", "*.good.test", "1.1.1.1"], ["0.0.0.0/0"])


@asynccontextmanager
async def serving(path: Path, uid: int = 0) -> AsyncIterator[SandboxTable]:
    """A control server as the gateway has it, gone with all its connections at the end."""
    table = SandboxTable()
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    tasks: set[asyncio.Task[None]] = set()
    control = ControlServer(table, RANGE, {uid})

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await control.connection(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()

    server = await asyncio.start_unix_server(connection, sock=listener, limit=1 << 24)
    try:
        yield table
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def nothing() -> list[SandboxEntry]:
    return []


def policy_of(table: SandboxTable, address: IPv4Address) -> EgressPolicy | None:
    sandbox = table.get(str(address))
    return sandbox.policy if sandbox else None


async def test_a_policy_is_in_force_when_the_call_returns(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as table:
        async with EgressClient(tmp_path / "s", nothing) as client:
            assert client.connected
            await client.ping()
            await client.set(SandboxEntry("one", FIRST, CLOSED))
            assert policy_of(table, FIRST) == CLOSED
            await client.set(SandboxEntry("one", FIRST, OPEN))
            assert policy_of(table, FIRST) == OPEN
            await client.remove(FIRST)
            await client.remove(FIRST)
            assert table.get(str(FIRST)) is None


async def test_many_calls_at_once_are_each_answered(tmp_path: Path) -> None:
    async with serving(tmp_path / "s") as table:
        async with EgressClient(tmp_path / "s", nothing) as client:
            await asyncio.gather(
                *(client.set(SandboxEntry(f"s{n}", FIRST + n, CLOSED)) for n in range(300))
            )
            assert len(table) == 300


async def test_a_gateway_that_comes_back_is_told_everything_anew(tmp_path: Path) -> None:
    async def on_connect() -> list[SandboxEntry]:
        return [SandboxEntry("two", SECOND, CLOSED)]

    client = EgressClient(tmp_path / "s", on_connect)
    async with serving(tmp_path / "s") as table:
        table.set(SandboxEntry("stale", FIRST, OPEN))
        await client.start()
        assert (policy_of(table, FIRST), policy_of(table, SECOND)) == (None, CLOSED)
    await asyncio.sleep(0.1)
    assert not client.connected
    waiting = asyncio.create_task(client.set(SandboxEntry("one", FIRST, CLOSED)))
    await asyncio.sleep(0.1)
    async with serving(tmp_path / "s") as table:
        await waiting  # a call made meanwhile is carried out after the connection is back
        assert (policy_of(table, FIRST), policy_of(table, SECOND)) == (CLOSED, CLOSED)
        await client.close()


async def test_trouble_in_the_callback_is_tried_again(tmp_path: Path) -> None:
    calls = 0

    async def on_connect() -> list[SandboxEntry]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the store is busy")
        return [SandboxEntry("one", FIRST, OPEN)]

    async with serving(tmp_path / "s") as table:
        async with EgressClient(tmp_path / "s", on_connect):
            assert (calls, policy_of(table, FIRST)) == (2, OPEN)


async def test_no_gateway_and_no_answer_are_told_apart_from_a_refusal(tmp_path: Path) -> None:
    client = EgressClient(tmp_path / "s", nothing)
    with pytest.raises(EgressUnavailable, match="no egress gateway"):
        await client.start(timeout=0.2)
    async with serving(tmp_path / "s"):
        await client.start()
        with pytest.raises(EgressRefused, match="outside of the range"):
            await client.set(SandboxEntry("one", IPv4Address("10.0.0.1"), OPEN))
        await client.close()


async def test_a_process_of_another_user_is_not_heard(tmp_path: Path) -> None:
    async with serving(tmp_path / "s", uid=12345) as table:
        client = EgressClient(tmp_path / "s", nothing)
        with pytest.raises(EgressUnavailable):
            await client.start(timeout=0.3)
        await client.close()
        assert not len(table)


@pytest.mark.parametrize("policy", [OPEN, CLOSED, parse_policy(["*"], ["0.0.0.0/0"])])
def test_a_policy_survives_the_wire(policy: EgressPolicy) -> None:
    assert parse_wire_policy(policy.to_json()) == policy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"names": ["Good.Test"]}, "not normalised"),
        ({"names": ["a b"]}, "names"),
        ({"names": "x"}, "list of strings"),
        ({"deny": [1]}, "policy.deny"),
        ({"allow": ["1.1.1.1/33"]}, "policy"),
        ({"allow": ["1.1.1.1"] * 10_001}, "more than"),
        ({"more": []}, "policy.more"),
    ],
)
def test_a_malformed_policy_is_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        parse_wire_policy({**OPEN.to_json(), **change})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"op": "ping"}',
        b'{"id": true, "op": "ping"}',
        b'{"id": 1}',
        b'{"id": 1, "op": ["set"]}',
        b'{"id": 1, "op": "set"}',
        b'{"id": 1, "op": "remove", "address": 3325165584}',
    ],
)
def test_a_malformed_request_is_answered_with_what_is_wrong(line: bytes) -> None:
    reply = ControlServer(SandboxTable(), RANGE, {0}).handle(line)
    assert isinstance(reply, dict)
    assert reply["ok"] is False
    assert reply["error"]
