"""Success on the wire: what each route takes and answers (wire contract, section 2)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import pytest

from api.conftest import DOMAIN
from node.fakes import World
from sandgate.policy import EgressPolicy, Mode, parse_policy


async def create(api: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """A new sandbox."""
    answer = await api.post("/v2/sandboxes", json={"templateID": "base", **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_create_answers_what_the_sdks_need(api: httpx.AsyncClient, world: World) -> None:
    made = await create(api, metadata={}, envVars={}, autoPause=False, secure=True)
    assert made == {
        "templateID": "base",
        "alias": "base",
        "sandboxID": made["sandboxID"],
        "clientID": world.settings.node_id,
        "envdVersion": "0.6.13",
        "domain": DOMAIN,
        "envdAccessToken": made["envdAccessToken"],
    }
    assert re.fullmatch("i[a-z0-9]{20}", made["sandboxID"])
    assert re.fullmatch("[0-9a-f]{64}", made["envdAccessToken"])
    (record,) = world.store.all()
    assert record.end_at - record.started_at < timedelta(seconds=300.1)


async def test_neutral_values_of_what_is_not_offered_pass(api: httpx.AsyncClient) -> None:
    network: dict[str, Any] = {
        "rules": {},
        "egressProxy": None,
        "httpsPorts": [],
        "dnsServers": None,
    }
    await create(
        api,
        network=network,
        mcp=None,
        iam={"tokens": {}},
        volumeMounts=[],
        autoResume={"enabled": False},
        autoPauseMemory=True,
    )


async def test_a_private_sandbox_has_a_traffic_token(api: httpx.AsyncClient) -> None:
    made = await create(api, network={"allowPublicTraffic": False})
    assert re.fullmatch("[0-9a-f]{64}", made["trafficAccessToken"])
    assert made["trafficAccessToken"] != made["envdAccessToken"]
    assert "trafficAccessToken" not in await create(api, network={"allowPublicTraffic": True})


@pytest.mark.parametrize(("secure", "has_token"), [(None, False), (False, False), (True, True)])
async def test_v1_secures_a_sandbox_only_if_asked_to(
    api: httpx.AsyncClient, secure: bool | None, has_token: bool
) -> None:
    body = {"templateID": "base"} | ({} if secure is None else {"secure": secure})
    answer = await api.post("/sandboxes", json=body)
    assert answer.status_code == 201
    assert ("envdAccessToken" in answer.json()) is has_token


async def test_v1_lives_15_seconds_unless_told(api: httpx.AsyncClient, world: World) -> None:
    await api.post("/sandboxes", json={"templateID": "base"})
    (record,) = world.store.all()
    assert timedelta(seconds=14) < record.end_at - record.started_at < timedelta(seconds=15.1)


async def test_info_tells_all_and_no_null(api: httpx.AsyncClient) -> None:
    network = {
        "allowOut": ["example.com"],
        "denyOut": ["0.0.0.0/0"],
        "allowPublicTraffic": False,
        "maskRequestHost": "localhost:${PORT}",
        "httpsPorts": [8443],
    }
    made = await create(api, metadata={"a": "b"}, network=network, allow_internet_access=True)
    info = (await api.get(f"/sandboxes/{made['sandboxID']}-6532622b")).json()
    started, end = info.pop("startedAt"), info.pop("endAt")
    assert datetime.fromisoformat(end) - datetime.fromisoformat(started) < timedelta(seconds=301)
    assert datetime.fromisoformat(started).tzinfo is UTC
    made.pop("trafficAccessToken")
    assert info == {
        **made,
        "cpuCount": 2,
        "memoryMB": 1024,
        "diskSizeMB": 10240,
        "state": "running",
        "metadata": {"a": "b"},
        "allowInternetAccess": True,
        "network": network,
        "lifecycle": {"onTimeout": "kill", "autoResume": False},
    }
    plain = await create(api)
    info = (await api.get(f"/sandboxes/{plain['sandboxID']}")).json()
    assert "network" not in info and "allowInternetAccess" not in info


async def test_kill_answers_nothing_and_the_second_time_404(api: httpx.AsyncClient) -> None:
    path = f"/sandboxes/{(await create(api))['sandboxID']}"
    first, second = await api.delete(path), await api.delete(path)
    assert (first.status_code, first.content) == (204, b"")
    assert (second.status_code, second.json()["code"]) == (404, 404)


@pytest.mark.parametrize("version", ["", "/v2"])
async def test_connect_gives_the_same_tokens_and_never_shortens(
    api: httpx.AsyncClient, world: World, version: str
) -> None:
    made = await create(api, timeout=1000, network={"allowPublicTraffic": False})
    path = f"{version}/sandboxes/{made['sandboxID']}/connect"
    answer = await api.post(path, json={"timeout": 10})
    assert (answer.status_code, answer.json()) == (200, made)
    (before,) = world.store.all()
    await api.post(path, json={"timeout": 2000})
    (after,) = world.store.all()
    assert before.end_at + timedelta(seconds=990) < after.end_at


async def test_connect_v2_needs_no_body(api: httpx.AsyncClient) -> None:
    made = await create(api)
    answer = await api.post(f"/v2/sandboxes/{made['sandboxID']}/connect")
    assert (answer.status_code, answer.json()) == (200, made)


async def test_timeout_and_refreshes_answer_nothing(api: httpx.AsyncClient, world: World) -> None:
    path = f"/sandboxes/{(await create(api, timeout=100))['sandboxID']}"
    for part, body, seconds in (
        ("refreshes", {"duration": 50}, 100),
        ("refreshes", {"duration": 200}, 200),
        ("refreshes", None, 200),
        ("timeout", {"timeout": 30}, 30),
    ):
        answer = await api.post(f"{path}/{part}", json=body)
        assert (answer.status_code, answer.content) == (204, b"")
        (record,) = world.store.all()
        left = record.end_at - datetime.now(UTC)
        assert timedelta(seconds=seconds - 2) < left <= timedelta(seconds=seconds)
    assert (await api.post(f"{path}/timeout", json={"timeout": -1})).status_code == 204
    assert (await api.get(path)).status_code == 404


async def test_resume_of_a_running_sandbox_is_409_as_old_sdks_expect(
    api: httpx.AsyncClient,
) -> None:
    made = await create(api)
    path = f"/sandboxes/{made['sandboxID']}/resume"
    assert (await api.post(path, json={"timeout": 10})).status_code == 409
    assert (await api.post("/sandboxes/inothere/resume", json={})).status_code == 404


async def test_a_network_update_replaces_the_egress_part(
    api: httpx.AsyncClient, world: World
) -> None:
    made = await create(api, allow_internet_access=False, network={"allowPublicTraffic": False})
    sandbox_id = made["sandboxID"]
    body = {"allowOut": ["*.example.com."], "denyOut": ["0.0.0.0/0"], "rules": {}}
    for update, policy in (
        (body, parse_policy(["*.example.com"], ["0.0.0.0/0"])),
        ({"allow_internet_access": False}, parse_policy(None, ["0.0.0.0/0"])),
        ({}, EgressPolicy()),
    ):
        answer = await api.put(f"/sandboxes/{sandbox_id}/network", json=update)
        assert (answer.status_code, answer.content) == (204, b"")
        assert world.launcher.policies[sandbox_id] == policy
    info = (await api.get(f"/sandboxes/{sandbox_id}")).json()
    assert info["network"] == {"allowPublicTraffic": False}


async def test_dns_servers_and_mode_are_given_kept_shown_and_replaced(
    api: httpx.AsyncClient, world: World
) -> None:
    lists: dict[str, Any] = {"allowOut": ["a.example:22"], "denyOut": ["0.0.0.0/0"]}
    network = {**lists, "dnsServers": ["1.1.1.1"], "mode": "report"}
    sandbox_id = (await create(api, network=network))["sandboxID"]
    expected = parse_policy(*lists.values(), dns_servers=["1.1.1.1"], mode=Mode.REPORT)
    assert world.launcher.policies[sandbox_id] == expected
    assert (await api.get(f"/sandboxes/{sandbox_id}")).json()["network"] == network
    path = f"/sandboxes/{sandbox_id}/network"
    answer = await api.patch(path, json={"mode": "enforce"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert world.launcher.policies[sandbox_id] == replace(expected, mode=Mode.ENFORCE)
    assert (await api.get(f"/sandboxes/{sandbox_id}")).json()["network"] == {
        **network,
        "mode": "enforce",
    }
    assert (await api.patch(path, json={"mode": "report"})).status_code == 204
    assert world.launcher.policies[sandbox_id] == expected
    for wrong in ({}, {"mode": None}, {"mode": "off"}, {"mode": "report", "allowOut": []}):
        assert (await api.patch(path, json=wrong)).status_code == 400
    assert (await api.patch("/sandboxes/i0/network", json={"mode": "report"})).status_code == 404
    assert world.launcher.policies[sandbox_id] == expected
    assert (await api.put(path, json=lists)).status_code == 204
    assert world.launcher.policies[sandbox_id] == parse_policy(*lists.values())
    assert (await api.get(f"/sandboxes/{sandbox_id}")).json()["network"] == lists


async def test_metadata_can_ask_for_report_mode(api: httpx.AsyncClient, world: World) -> None:
    metadata = {"sandgate.network-mode": "report", "a": "b"}
    sandbox_id = (await create(api, metadata=metadata))["sandboxID"]
    assert world.launcher.policies[sandbox_id].mode is Mode.REPORT
    info = (await api.get(f"/sandboxes/{sandbox_id}")).json()
    assert (info["metadata"], info["network"]) == (metadata, {"mode": "report"})
    assert (await api.put(f"/sandboxes/{sandbox_id}/network", json={})).status_code == 204
    assert world.launcher.policies[sandbox_id].mode is Mode.ENFORCE


async def test_a_thousand_entries_of_each_kind_are_accepted(
    api: httpx.AsyncClient, world: World
) -> None:
    names = [f"host-{n}.example.com" for n in range(1000)]
    ranges = [f"20.{n // 250}.{n % 250}.0/24" for n in range(1000)]
    network = {"allowOut": names + ranges, "denyOut": ["0.0.0.0/0", *ranges]}
    made = await create(api, network=network)
    policy = world.launcher.policies[made["sandboxID"]]
    assert len(policy.names.exact) == 1000


async def test_lists_have_pages_newest_first(api: httpx.AsyncClient) -> None:
    made = [(await create(api, metadata={"n": str(n)}))["sandboxID"] for n in range(5)]
    seen: list[str] = []
    parameters = {"limit": "2"}
    while True:
        answer = await api.get("/v2/sandboxes", params=parameters)
        assert answer.status_code == 200
        seen += [item["sandboxID"] for item in answer.json()]
        if "X-Next-Token" not in answer.headers:
            break
        parameters["nextToken"] = answer.headers["X-Next-Token"]
    assert seen == made[::-1]
    ascending = await api.get("/v2/sandboxes", params={"order": "asc"})
    assert [item["sandboxID"] for item in ascending.json()] == made
    old = await api.get("/sandboxes")
    assert {item["sandboxID"] for item in old.json()} == set(made)
    assert set(old.json()[0]) == {
        "alias", "templateID", "sandboxID", "clientID", "startedAt", "endAt", "cpuCount",
        "memoryMB", "diskSizeMB", "metadata", "state", "envdVersion",
    }  # fmt: skip


async def test_lists_are_filtered(api: httpx.AsyncClient) -> None:
    odd = {"a b": "c&d", "who": "zoë=1+1"}
    first = (await create(api, metadata=odd))["sandboxID"]
    await asyncio.sleep(0.002)
    second = (await create(api, templateID="code-interpreter-v1"))["sandboxID"]
    started = (await api.get(f"/sandboxes/{second}")).json()["startedAt"]
    # As the SDKs do: quoted, form-encoded, and quoted again in the query.
    metadata = urlencode({quote(key): quote(value) for key, value in odd.items()})
    for parameters, expected in (
        ({"metadata": metadata}, [first]),
        ({"metadata": "who=me"}, []),
        ({"template": "interpreter"}, [second]),
        ({"template": "unknown"}, []),
        ({"startedAfter": started}, [second]),
        ({"state": "paused"}, []),
        ({"state": "running,paused"}, [second, first]),
        ({"source": "unknown parameters are ignored"}, [second, first]),
    ):
        answer = await api.get("/v2/sandboxes", params=parameters)
        assert [item["sandboxID"] for item in answer.json()] == expected, parameters
    repeated = await api.get("/v2/sandboxes?state=running&state=paused")
    assert len(repeated.json()) == 2
    old = await api.get("/sandboxes", params={"metadata": metadata})
    assert [item["sandboxID"] for item in old.json()] == [first]


async def test_health_needs_no_key_and_tells_what_is_missing(
    api: httpx.AsyncClient, world: World
) -> None:
    del api.headers["X-API-KEY"]
    answer = await api.get("/health")
    parts = {"launcher": True, "egress": True, "ingress": True, "sandboxes": True}
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "components": parts, "sandboxes": 0}
    world.egress.connected = False
    answer = await api.get("/health")
    assert (answer.status_code, answer.json()["code"]) == (503, 503)
    assert answer.json()["message"] == "the node is not ready: waiting for egress"
    assert answer.json()["components"] == {**parts, "egress": False}


async def test_browsers_may_call_the_api(api: httpx.AsyncClient) -> None:
    origin = {"Origin": "https://dashboard.example.com"}
    preflight = await api.options(
        "/v2/sandboxes",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "x-api-key,content-type",
        },
    )
    assert preflight.status_code == 200
    assert "x-api-key" in preflight.headers["Access-Control-Allow-Headers"].lower()
    del api.headers["X-API-KEY"]
    for answer in (preflight, await api.get("/v2/sandboxes", headers=origin)):
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "X-Next-Token" in answer.headers["Access-Control-Expose-Headers"]
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/v2/sandboxes", "/sandboxes/i1/metrics", "/no/such/path"])
async def test_options_is_answered_on_every_path_without_a_key(
    api: httpx.AsyncClient, path: str
) -> None:
    del api.headers["X-API-KEY"]
    answer = await api.options(path, headers={"Origin": "https://example.com"})
    assert answer.status_code == 204 and answer.content == b""
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
