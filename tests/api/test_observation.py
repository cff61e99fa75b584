"""Metrics and logs on the wire (wire contract, 2.2 and 2.8)."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any

import httpx
import pytest

from api.answers import error
from api.test_sandboxes import create
from node.fakes import USES, World

NINE = {
    "timestamp",
    "timestampUnix",
    "cpuCount",
    "cpuUsedPct",
    "memUsed",
    "memTotal",
    "memCache",
    "diskUsed",
    "diskTotal",
}


async def measured(api: httpx.AsyncClient, world: World) -> str:
    """A sandbox with samples of seconds 1000, 1005 and 1010."""
    made: str = (await create(api))["sandboxID"]
    meter = world.node.observe(made).meter
    for second in range(995, 1015, 5):
        meter.read(USES, moment=second, wall=second)
    return made


async def get(api: httpx.AsyncClient, path: str, **query: Any) -> Any:
    answer = await api.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_metric_has_all_nine_fields(api: httpx.AsyncClient, world: World) -> None:
    made = await measured(api, world)
    (first, *_) = await get(api, f"/sandboxes/{made}/metrics")
    assert set(first) == NINE
    assert datetime.fromisoformat(first["timestamp"]).timestamp() == first["timestampUnix"] == 1000
    assert first["memTotal"] == world.settings.memory_mb << 20
    assert first["cpuCount"] == world.settings.cpu_count
    assert (first["memUsed"], first["memCache"]) == (USES.memory, USES.cache)
    assert (first["diskUsed"], first["diskTotal"]) == (USES.disk, USES.disk_size)


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ({}, [1000, 1005, 1010]),
        ({"start": 1005}, [1005, 1010]),
        ({"end": 1005}, [1000, 1005]),
        ({"start": 1001, "end": 1009}, [1005]),
        ({"start": 0, "end": 10}, []),
        ({"start": 2000, "end": 10}, []),
    ],
)
async def test_metrics_of_a_time(
    api: httpx.AsyncClient, world: World, query: dict[str, int], seconds: list[int]
) -> None:
    made = await measured(api, world)
    found = await get(api, f"/sandboxes/{made}/metrics", **query)
    assert [item["timestampUnix"] for item in found] == seconds


async def test_the_latest_metrics_of_many(api: httpx.AsyncClient, world: World) -> None:
    one, two = await measured(api, world), await measured(api, world)
    new = (await create(api))["sandboxID"]
    found = await get(api, "/sandboxes/metrics", sandbox_ids=f"{one},{two},{new},iunknown")
    assert set(found["sandboxes"]) == {one, two}
    assert found["sandboxes"][one]["timestampUnix"] == 1010


async def test_logs_tell_what_happened(api: httpx.AsyncClient) -> None:
    made = (await create(api, network={"denyOut": ["1.1.1.1"]}))["sandboxID"]
    await api.post(f"/sandboxes/{made}/timeout", json={"timeout": 100})
    old = await get(api, f"/sandboxes/{made}/logs")
    new = await get(api, f"/v2/sandboxes/{made}/logs")
    assert new["logs"] == old["logEntries"]
    assert [entry["message"] for entry in new["logs"]] == [
        "Sandbox started",
        "Network policy in force",
        "End of the sandbox's time changed",
    ]
    assert json.loads(old["logs"][1]["line"]) == {
        "message": "Network policy in force",
        "level": "info",
        "logger": "sandgate",
        "deny_out": "1.1.1.1",
    }
    first = new["logs"][0]
    assert set(first) == {"timestamp", "message", "level", "fields"} and first["level"] == "info"
    assert abs(datetime.fromisoformat(first["timestamp"]).timestamp() - time.time()) < 60


async def test_logs_are_paged_by_their_cursor(api: httpx.AsyncClient) -> None:
    path = f"/v2/sandboxes/{(await create(api))['sandboxID']}/logs"
    (first, second) = (await get(api, path))["logs"]
    (page,) = (await get(api, path, limit=1))["logs"]
    assert page == first
    after = round(datetime.fromisoformat(first["timestamp"]).timestamp() * 1000) + 1
    assert (await get(api, path, cursor=after))["logs"] == [second]
    assert (await get(api, path, direction="backward", limit=1))["logs"] == [second]
    assert (await get(api, path, level="warn"))["logs"] == []
    assert (await get(api, path, search="policy"))["logs"] == [second]
    old = await get(api, path.removeprefix("/v2"), start=after)
    assert old["logEntries"] == [second]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/sandboxes/inothere/metrics", 404),
        ("/sandboxes/inothere/logs", 404),
        ("/v2/sandboxes/inothere/logs", 404),
        ("/sandboxes/A!/metrics", 400),
        ("/sandboxes/ID/metrics?start=soon", 400),
        ("/sandboxes/ID/metrics?start=-1", 400),
        ("/sandboxes/ID/metrics?end=99999999999999999999", 400),
        ("/sandboxes/metrics", 400),
        ("/sandboxes/metrics?sandbox_ids=", 400),
        ("/sandboxes/metrics?sandbox_ids=a,,b", 400),
        ("/sandboxes/metrics?sandbox_ids=" + "a," * 100 + "a", 400),
        ("/v2/sandboxes/ID/logs?direction=up", 400),
        ("/v2/sandboxes/ID/logs?level=loud", 400),
        ("/v2/sandboxes/ID/logs?limit=1001", 400),
        ("/v2/sandboxes/ID/logs?search=" + "x" * 257, 400),
    ],
)
async def test_what_cannot_be_answered(api: httpx.AsyncClient, path: str, status: int) -> None:
    mine = await create(api)
    assert error(await api.get(path.replace("/ID/", f"/{mine['sandboxID']}/")), status)
