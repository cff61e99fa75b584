"""A create that is repeated with the same Idempotency-Key makes one sandbox."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from api.answers import error
from api.conftest import make_services
from node.fakes import World, lost
from sandgate.api import repetitions
from sandgate.node.decisions import DecisionHub
from sandgate.store import NoteKind

BODY = {"templateID": "base", "metadata": {"a": "1", "b": "2"}}


async def post(
    api: httpx.AsyncClient, key: str, body: dict[str, Any] = BODY, path: str = "/v2/sandboxes"
) -> httpx.Response:
    return await api.post(path, json=body, headers={"Idempotency-Key": key})


async def test_the_same_request_gets_the_same_sandbox(api: httpx.AsyncClient, world: World) -> None:
    first = await post(api, "key-1")
    other_order = {"metadata": {"b": "2", "a": "1"}, "templateID": "base"}
    again = await post(api, "key-1", other_order)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert (await post(api, "key-2")).json()["sandboxID"] != first.json()["sandboxID"]
    assert len(world.store.all()) == 2


async def test_another_request_with_the_key_is_422(api: httpx.AsyncClient, world: World) -> None:
    await post(api, "key")
    for answer in (
        await post(api, "key", {**BODY, "timeout": 30}),
        await post(api, "key", path="/sandboxes"),
    ):
        assert "'key'" in error(answer, 422)
        assert answer.json()["error_code"] == "idempotency_request_mismatch"
    assert len(world.store.all()) == 1


async def test_requests_at_the_same_time_wait_for_the_first(
    api: httpx.AsyncClient, world: World
) -> None:
    gate = world.launcher.gates["create"] = asyncio.Event()
    tasks = [asyncio.create_task(post(api, "key")) for _ in range(5)]
    await asyncio.sleep(0.05)
    assert error(await post(api, "key", {"templateID": "base"}), 422)
    gate.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["sandboxID"] for answer in answers}) == 1
    assert len(world.store.all()) == 1


async def test_the_first_clients_leaving_does_not_stop_the_others(
    api: httpx.AsyncClient, world: World
) -> None:
    gate = world.launcher.gates["create"] = asyncio.Event()
    first = asyncio.create_task(post(api, "key"))
    await asyncio.sleep(0.05)
    second = asyncio.create_task(post(api, "key"))
    await asyncio.sleep(0.05)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert (await second).status_code == 201
    assert len(world.store.all()) == 1


async def test_after_a_failure_the_key_is_free(api: httpx.AsyncClient, world: World) -> None:
    world.launcher.failures["create"] = [lost()]
    assert error(await post(api, "key"), 503)
    assert (await post(api, "key", {"templateID": "base"})).status_code == 201


async def test_a_key_outlives_its_sandbox_and_the_process(
    api: httpx.AsyncClient, world: World, hub: DecisionHub
) -> None:
    made = (await post(api, "key")).json()
    await api.delete(f"/sandboxes/{made['sandboxID']}")
    assert (await post(api, "key")).json() == made
    app = api._transport.app  # type: ignore[attr-defined]  # httpx has no other way to it
    app.state.services = make_services(world, hub)
    assert (await post(api, "key")).json() == made
    assert error(await post(api, "key", {"templateID": "base"}), 422)


async def test_a_key_is_forgotten_after_its_day(
    api: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetitions, "LIFETIME", timedelta(0))
    first = (await post(api, "key")).json()
    assert (await post(api, "key")).json() != first
    await post(api, "other")
    assert set(world.store.notes(NoteKind.REPETITION)) == {"other"}


async def test_the_number_of_keys_is_bounded(
    api: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetitions, "CAPACITY", 2)
    for key in ("a", "b", "c"):
        await post(api, key)
    assert set(world.store.notes(NoteKind.REPETITION)) == {"b", "c"}


async def test_a_damaged_note_is_no_hindrance(api: httpx.AsyncClient, world: World) -> None:
    world.store.write_notes(NoteKind.REPETITION, {"key": b"damaged"})
    assert (await post(api, "key")).status_code == 201


@pytest.mark.parametrize("key", ["", "A", "a b", "a_b", "x" * 256, "ä"])
async def test_a_key_that_is_none_is_400(api: httpx.AsyncClient, world: World, key: str) -> None:
    answer = await api.post(
        "/v2/sandboxes", json=BODY, headers=[(b"Idempotency-Key", key.encode())]
    )
    assert "Idempotency-Key" in error(answer, 400)
    assert world.store.all() == []


async def test_a_longest_key(api: httpx.AsyncClient) -> None:
    assert (await post(api, "x" * 255)).status_code == 201
