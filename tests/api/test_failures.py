"""Failure that is not the client's: a full node, one that is not ready, broken parts."""

from __future__ import annotations

import httpx
import pytest

from api.answers import error
from node.fakes import World, lost
from sandgate.runtime.client import CapacityError, LauncherError
from sandgate.store import StoreError


async def test_a_full_node_is_429_and_not_worth_repeating(
    api: httpx.AsyncClient, world: World
) -> None:
    for _ in range(5):
        await api.post("/v2/sandboxes", json={"templateID": "base"})
    answer = await api.post("/v2/sandboxes", json={"templateID": "base"})
    assert "limit of 5 sandboxes" in error(answer, 429)
    assert answer.headers["Should-Retry"] == "false"


@pytest.mark.parametrize(
    ("failure", "status", "retry"),
    [
        (lost(), 503, "true"),
        (LauncherError("mount failed"), 500, "false"),
        (CapacityError("no slot is free"), 429, "false"),
    ],
)
async def test_a_create_that_fails_says_whether_to_repeat_it_and_leaves_nothing(
    api: httpx.AsyncClient, world: World, failure: Exception, status: int, retry: str
) -> None:
    world.launcher.failures["create"] = [failure]
    answer = await api.post("/v2/sandboxes", json={"templateID": "base"})
    assert str(failure) in error(answer, status)
    assert answer.headers["Should-Retry"] == retry
    assert world.leftovers() == []


async def test_a_node_that_is_not_ready_is_503_and_worth_repeating(
    api: httpx.AsyncClient, world: World
) -> None:
    world.ingress.connected = False
    answer = await api.post("/v2/sandboxes", json={"templateID": "base"})
    assert "waiting for ingress" in error(answer, 503)
    assert (answer.headers["Should-Retry"], answer.headers["Retry-After"]) == ("true", "1")


async def test_a_policy_that_could_not_be_changed_is_500(
    api: httpx.AsyncClient, world: World
) -> None:
    made = (await api.post("/v2/sandboxes", json={"templateID": "base"})).json()
    world.launcher.failures["set_policy"] = [LauncherError("no memory")]
    answer = await api.put(f"/sandboxes/{made['sandboxID']}/network", json={})
    assert "the old ones hold: no memory" in error(answer, 500)


async def test_what_goes_wrong_inside_stays_inside(
    api: httpx.AsyncClient, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("s3cret detail")

    monkeypatch.setattr(world.node, "find", fail)
    headers = {"Origin": "https://a.example"}
    answer = await api.get("/v2/sandboxes", headers=headers)
    assert "s3cret" not in error(answer, 500)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"

    def broken(*_: object) -> None:
        raise StoreError("s3cret detail")

    monkeypatch.setattr(world.node, "find", broken)
    assert "s3cret" not in error(await api.get("/v2/sandboxes"), 500)
