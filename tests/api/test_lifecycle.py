"""Pausing over the wire (wire contract, 2.3 and 2.7), and as the SDK sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from api.test_sandboxes import create
from node.fakes import World, lost
from sandgate.runtime.client import LauncherError


async def info(api: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await api.get(f"/sandboxes/{name}")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("body", [None, {}, {"memory": True}, {"requireHealthyGuest": True}])
async def test_pause_and_connect(api: httpx.AsyncClient, body: dict[str, bool] | None) -> None:
    made = await create(api)
    name = made["sandboxID"]
    answer = await api.post(f"/sandboxes/{name}/pause", json=body)
    assert (answer.status_code, answer.content) == (204, b"")
    told = await info(api, name)
    assert (told["state"], told["pauseMode"]) == ("paused", "full")
    assert datetime.fromisoformat(told["endAt"]) <= datetime.now(UTC)
    for state, count in (("paused", 1), ("running", 0), ("running,paused", 1)):
        listed = (await api.get("/v2/sandboxes", params={"state": state})).json()
        assert [item["state"] for item in listed] == ["paused"] * count
    assert (await api.get("/sandboxes")).json() == []
    answer = await api.post(f"/sandboxes/{name}/pause")
    assert (answer.status_code, answer.json()["code"]) == (409, 409)
    assert (await api.post(f"/sandboxes/{name}/timeout", json={"timeout": 9})).status_code == 404
    answer = await api.post(f"/v2/sandboxes/{name}/connect", json={"timeout": 60})
    assert answer.status_code == 201
    assert answer.json() == made
    assert "pauseMode" not in await info(api, name)
    assert (await api.post(f"/v2/sandboxes/{name}/connect")).status_code == 200


@pytest.mark.parametrize("path", ["connect", "resume"])
async def test_the_old_ways_to_resume(api: httpx.AsyncClient, path: str) -> None:
    made = await create(api)
    name = made["sandboxID"]
    await api.post(f"/sandboxes/{name}/pause")
    answer = await api.post(f"/sandboxes/{name}/{path}", json={"timeout": 60})
    assert (answer.status_code, answer.json()) == (201, made)
    answer = await api.post(f"/sandboxes/{name}/{path}", json={"timeout": 60})
    assert answer.status_code == {"connect": 200, "resume": 409}[path]


@pytest.mark.parametrize("path", ["pause", "connect", "resume"])
async def test_unknown_sandboxes_are_404(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(f"/sandboxes/nonexistingsandbox/{path}", json={"timeout": 60})
    if path == "pause":
        answer = await api.post("/sandboxes/nonexistingsandbox/pause", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, 404)


async def test_a_paused_sandbox_can_be_killed_once(api: httpx.AsyncClient) -> None:
    name = (await create(api))["sandboxID"]
    await api.post(f"/sandboxes/{name}/pause")
    assert (await api.delete(f"/sandboxes/{name}")).status_code == 204
    assert (await api.delete(f"/sandboxes/{name}")).status_code == 404


@pytest.mark.parametrize(
    ("given", "lifecycle"),
    [
        ({}, {"onTimeout": "kill", "autoResume": False}),
        ({"autoPause": True}, {"onTimeout": "pause", "autoResume": False}),
        (
            {"autoPause": True, "autoResume": {"enabled": True}},
            {"onTimeout": "pause", "autoResume": True},
        ),
        (
            {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": False}},
            {"onTimeout": "pause", "autoResume": False},
        ),
    ],
)
async def test_the_lifecycle_is_told(
    api: httpx.AsyncClient, given: dict[str, Any], lifecycle: dict[str, Any]
) -> None:
    made = await create(api, **given)
    assert (await info(api, made["sandboxID"]))["lifecycle"] == lifecycle


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"autoPauseMemory": False}, "only with 'autoPause': true"),
        ({"autoPauseMemory": False, "autoPause": False}, "only with 'autoPause': true"),
        (
            {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}},
            "'autoPauseMemory': false cannot be had together with 'autoResume'",
        ),
        ({"autoResume": {}}, "missing field 'autoResume.enabled'"),
        ({"autoResume": True}, "autoResume"),
        ({"autoPause": "yes"}, "autoPause"),
    ],
)
async def test_settings_that_contradict_each_other_are_refused(
    api: httpx.AsyncClient, given: dict[str, Any], message: str
) -> None:
    answer = await api.post("/v2/sandboxes", json={"templateID": "base", **given})
    assert answer.status_code == 400
    assert message in answer.json()["message"]


@pytest.mark.parametrize(
    ("failure", "status", "retry"),
    [(LauncherError("no"), 500, "false"), (lost(), 503, "true")],
)
async def test_what_fails_says_whether_to_try_again(
    api: httpx.AsyncClient, world: World, failure: Exception, status: int, retry: str
) -> None:
    name = (await create(api))["sandboxID"]
    world.launcher.failures["pause"] = [failure]
    answer = await api.post(f"/sandboxes/{name}/pause")
    assert (answer.status_code, answer.headers["Should-Retry"]) == (status, retry)
    assert (await info(api, name))["state"] == "running"
