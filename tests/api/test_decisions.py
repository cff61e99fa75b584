"""The decision log through the API, and the figures for Prometheus."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.answers import error
from api.conftest import KEY, Served
from api.test_sandboxes import create
from sandgate.decisions.tally import Subject, Sum
from sandgate.decisions.wire import Batch, encode
from sandgate.node.decisions import MAX_QUEUE, DecisionHub
from sandgate.reasons import Reason


def denied(sandbox_id: str, port: int = 22) -> Subject:
    address, rule = "192.0.2.1", "0.0.0.0/0"
    return Subject(sandbox_id, "tcp", address, port, None, False, Reason.DENIED_ADDRESS, rule)


def named(sandbox_id: str) -> Subject:
    return Subject(
        sandbox_id, "tls", "192.0.2.2", 443, "a.test", True, Reason.ALLOWED_NAME, "*.test"
    )


def tell(hub: DecisionHub, *subjects: Subject, **more: Any) -> None:
    hub.receive(
        Batch("egress", [(subject, Sum(1e9, 1e9 + 1, 1, 2, 3, 4)) for subject in subjects], **more)
    )


async def log(api: httpx.AsyncClient, sandbox_id: str, **query: Any) -> dict[str, Any]:
    answer = await api.get(f"/sandboxes/{sandbox_id}/network/decisions", params=query)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return {**body, "next": answer.headers.get("X-Next-Token")}


@pytest.fixture
async def box(api: httpx.AsyncClient) -> str:
    sandbox_id: str = (await create(api))["sandboxID"]
    return sandbox_id


async def test_a_decision_has_all_its_fields(
    api: httpx.AsyncClient, hub: DecisionHub, box: str
) -> None:
    tell(hub, named(box), unrecorded={box: 7})
    assert await log(api, box) == {
        "decisions": [
            {
                "time": "2001-09-09T01:46:41Z",
                "sandboxID": box,
                "protocol": "tls",
                "destination": "192.0.2.2",
                "port": 443,
                "name": "a.test",
                "verdict": "allow",
                "reason": "allowed_name",
                "rule": "*.test",
                "reported": False,
                "count": 1,
                "firstSeen": "2001-09-09T01:46:40Z",
                "lastSeen": "2001-09-09T01:46:41Z",
                "bytesSent": 2,
                "bytesReceived": 3,
                "durationMs": 4,
            }
        ],
        "notRecorded": {"suppressed": 7, "droppedRows": 0, "dropped": 0, "droppedBytes": 0},
        "next": None,
    }


async def test_what_other_processes_send_arrives(
    api: httpx.AsyncClient, box: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for datagram in (b"nonsense", *encode(Batch("egress", [(denied(box), Sum(1, 1))]))):
            sender.sendto(datagram, str(tmp_path / "decisions.sock"))
    for _ in range(100):
        if found := (await log(api, box))["decisions"]:
            break
        await asyncio.sleep(0.01)
    assert found[0]["reason"] == "denied_address"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({"verdict": "deny"}, 3),
        ({"verdict": "allow"}, 1),
        ({"protocol": "tls"}, 1),
        ({"name": "A.test."}, 1),
        ({"destination": "192.0.2.1"}, 3),
        ({"reason": "denied_address"}, 3),
        ({"reason": "always_denied"}, 0),
        ({"since": "2001-09-09T01:46:41Z"}, 4),
        ({"since": "2001-09-09T01:46:42Z"}, 0),
        ({"until": "2001-09-09T01:46:40Z"}, 4),
        ({"until": "2001-09-09T01:46:39Z"}, 0),
    ],
)
async def test_filters(
    api: httpx.AsyncClient, hub: DecisionHub, box: str, query: dict[str, str], count: int
) -> None:
    tell(hub, named(box), *(denied(box, port) for port in (1, 2, 3)))
    assert len((await log(api, box, **query))["decisions"]) == count


async def test_pages(api: httpx.AsyncClient, hub: DecisionHub, box: str) -> None:
    tell(hub, *(denied(box, port) for port in range(1, 6)))
    seen, query = [], {"limit": "2"}
    while True:
        page = await log(api, box, **query)
        seen += [item["port"] for item in page["decisions"]]
        if page["next"] is None:
            break
        query["nextToken"] = page["next"]
    assert sorted(seen) == [1, 2, 3, 4, 5] and len(seen) == 5


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"verdict": "maybe"}, "'verdict'"),
        ({"protocol": "TCP!"}, "'protocol'"),
        ({"destination": "nowhere"}, "'destination'"),
        ({"reason": "none"}, "'reason'"),
        ({"since": "yesterday"}, "invalid since"),
        ({"until": "2001-09-09"}, "invalid until"),
        ({"limit": "0"}, "'limit'"),
        ({"nextToken": "x"}, "X-Next-Token"),
        ({"follow": "true", "since": "2001-09-09T01:46:41Z"}, "live stream"),
    ],
)
async def test_what_means_nothing_is_400(
    api: httpx.AsyncClient, box: str, query: dict[str, str], message: str
) -> None:
    answer = await api.get(f"/sandboxes/{box}/network/decisions", params=query)
    assert message in error(answer, 400)


async def test_the_log_outlives_the_sandbox(
    api: httpx.AsyncClient, hub: DecisionHub, box: str
) -> None:
    tell(hub, denied(box))
    assert (await api.delete(f"/sandboxes/{box}")).status_code == 204
    tell(hub, denied(box, 23))
    assert len((await log(api, box))["decisions"]) == 2
    unknown = await api.get("/sandboxes/inothere/network/decisions")
    assert "inothere" in error(unknown, 404)
    live = await api.get(f"/sandboxes/{box}/network/decisions?follow=true")
    assert error(live, 404)


async def test_without_the_key_there_is_nothing(api: httpx.AsyncClient, box: str) -> None:
    del api.headers["X-API-KEY"]
    for path in (f"/sandboxes/{box}/network/decisions", "/metrics"):
        assert error(await api.get(path), 401)


def read_events(stream: Any, until: str) -> list[tuple[str, Any]]:
    """Events up to the first of this kind."""
    events: list[tuple[str, Any]] = []
    kind = ""
    for line in stream:
        word, _, value = line.partition(": ")
        if word == "event":
            kind = value
        elif word == "data":
            events.append((kind, json.loads(value)))
            if kind == until:
                break
    return events


def test_live(served: Served) -> None:
    with httpx.Client(base_url=served.url, headers={"X-API-KEY": KEY}, timeout=20) as client:
        box = client.post("/v2/sandboxes", json={"templateID": "base"}).json()["sandboxID"]
        path = f"/sandboxes/{box}/network/decisions"

        def say(*subjects: Subject) -> None:
            done = asyncio.run_coroutine_threadsafe(_tell(served.hub, *subjects), served.loop)
            done.result(10)

        with client.stream(
            "GET", path, headers={"Accept": "text/event-stream"}, params={"verdict": "deny"}
        ) as response:
            lines = response.iter_lines()
            assert next(lines) == ": live"
            say(named(box), denied(box), denied("another"))
            (event,) = read_events(lines, "decision")
            assert event[1]["destination"] == "192.0.2.1" and event[1]["sandboxID"] == box
            say(*(denied(box, port) for port in range(MAX_QUEUE + 5)))
            told = read_events(lines, "missed")
            assert len(told) == MAX_QUEUE + 1 and told[-1][1] == {"missed": 5}
            client.delete(f"/sandboxes/{box}")
            assert read_events(lines, "end")[-1] == ("end", {})
            assert list(lines) == [""]
        deadline = time.monotonic() + 5
        while served.hub.tails:
            assert time.monotonic() < deadline
            time.sleep(0.01)


async def _tell(hub: DecisionHub, *subjects: Subject) -> None:
    tell(hub, *subjects)


async def test_figures_for_prometheus(api: httpx.AsyncClient, hub: DecisionHub, box: str) -> None:
    tell(hub, denied(box), denied(box), named(box), unrecorded={box: 5}, gauges={"connections": 9})
    key = api.headers.pop("X-API-KEY")
    answer = await api.get("/metrics", headers={"Authorization": f"Bearer {key}"})
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    for line in (
        'sandgate_decisions_total{reason="denied_address",verdict="deny"} 2.0',
        'sandgate_decisions_total{reason="allowed_name",verdict="allow"} 1.0',
        'sandgate_bytes_total{direction="sent"} 6.0',
        'sandgate_bytes_total{direction="received"} 9.0',
        'sandgate_sandboxes{state="running"} 1.0',
        'sandgate_connections{source="egress"} 9.0',
        "sandgate_decisions_suppressed_total 5.0",
        "sandgate_dns_queries_total 0.0",
    ):
        assert line in lines
    elsewhere = await api.get("/v2/sandboxes", headers={"Authorization": f"Bearer {key}"})
    assert error(elsewhere, 401)
