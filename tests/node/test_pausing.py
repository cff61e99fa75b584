"""Pausing and resuming: what the parts are told, in which order, and what happens if they fail."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest

from node.fakes import World, lost, no_proxy, request
from sandgate.node.errors import (
    AlreadyPaused,
    ChangeFailed,
    InvalidRequest,
    SandboxEnding,
    SandboxNotFound,
)
from sandgate.node.node import Node
from sandgate.runtime.client import LauncherError
from sandgate.store import ListQuery, NetworkConfig, StoreError


def states(node: Node) -> dict[str, str]:
    records = node.find(ListQuery(states=frozenset({"running", "paused"})))
    return {record.sandbox_id: record.state for record in records}


async def paused(world: World, **changes: object) -> str:
    name = (await world.node.create(request(**changes))).sandbox_id
    await world.node.pause(name)
    return name


async def test_a_paused_sandbox_has_no_route_but_all_else(world: World) -> None:
    record = await world.node.create(request())
    world.log.clear()
    await world.node.pause(record.sandbox_id)
    # The route goes first: who is cut off by the pause must not find it any more.
    assert world.log == ["ingress.remove", "launcher.pause"]
    assert world.ingress.routes == {} and world.node.routes() == []
    assert [entry.sandbox_id for entry in await world.node.entries()] == [record.sandbox_id]
    assert len(world.egress.entries) == 1
    assert world.launcher.sandboxes[record.sandbox_id].paused
    told = world.node.get(record.sandbox_id)
    assert (told.state, told.pause_mode) == ("paused", "full")
    assert told.end_at <= datetime.now(UTC)
    assert states(world.node) == {record.sandbox_id: "paused"}


async def test_connecting_resumes_with_the_same_name_and_tokens(world: World) -> None:
    before = await world.node.create(request(network=NetworkConfig(allow_public_traffic=False)))
    await world.node.pause(before.sandbox_id)
    after, resumed = await world.node.connect(before.sandbox_id, 100)
    assert resumed
    assert (after.envd_token, after.traffic_token) == (before.envd_token, before.traffic_token)
    assert (after.state, after.pause_mode) == ("running", None)
    assert abs(after.end_at - datetime.now(UTC) - timedelta(seconds=100)).total_seconds() < 5
    assert list(world.ingress.routes) == [before.sandbox_id]
    assert not world.launcher.sandboxes[before.sandbox_id].paused
    assert await world.node.connect(before.sandbox_id, 1) == (after, False)


async def test_a_paused_sandbox_does_not_expire_and_a_resumed_one_does(world: World) -> None:
    record = await world.node.create(request(timeout=1))
    await world.node.pause(record.sandbox_id)
    await asyncio.sleep(1.2)
    assert states(world.node) == {record.sandbox_id: "paused"}
    await world.node.connect(record.sandbox_id, 1)
    await asyncio.sleep(1.2)
    assert world.leftovers() == []


async def test_what_a_paused_sandbox_answers(world: World) -> None:
    name = await paused(world)
    with pytest.raises(AlreadyPaused):
        await world.node.pause(name)
    for change in (world.node.set_timeout(name, 10), world.node.extend(name, 10)):
        with pytest.raises(SandboxNotFound):
            await change
    with pytest.raises(InvalidRequest, match="at least 1 second"):
        await world.node.connect(name, 0)
    await world.node.update_network(name, NetworkConfig(deny_out=("0.0.0.0/0",)), None)
    assert world.launcher.policies[name] == world.egress.entries.popitem()[1].policy
    await world.node.kill(name)
    assert world.leftovers() == []
    for call in (world.node.kill(name), world.node.pause(name), world.node.connect(name, 10)):
        with pytest.raises(SandboxNotFound):
            await call


async def test_at_the_end_of_its_time_it_is_paused_if_so_wished(world: World) -> None:
    record = await world.node.create(request(timeout=1, auto_pause=True))
    await asyncio.sleep(1.3)
    assert world.node.get(record.sandbox_id).state == "paused"
    await world.node.connect(record.sandbox_id, 100)
    await world.node.set_timeout(record.sandbox_id, 0)
    assert world.node.get(record.sandbox_id).state == "paused"


async def test_an_automatic_pause_that_fails_for_good_ends_the_sandbox(world: World) -> None:
    world.launcher.failures["pause"] = [LauncherError("cannot be frozen")]
    await world.node.create(request(timeout=1, auto_pause=True))
    await asyncio.sleep(1.3)
    assert world.leftovers() == []


async def test_an_automatic_pause_is_tried_again_when_the_launcher_was_away(world: World) -> None:
    world.launcher.failures["pause"] = [lost()]
    record = await world.node.create(request(timeout=1, auto_pause=True))
    await asyncio.sleep(2.5)
    assert world.node.get(record.sandbox_id).state == "paused"


@pytest.mark.parametrize("fault", ["launcher", "store"])
async def test_a_pause_that_fails_leaves_a_running_sandbox(
    world: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await world.node.create(request(timeout=1))
    if fault == "launcher":
        world.launcher.failures["pause"] = [LauncherError("cannot be frozen")]
    else:
        monkeypatch.setattr(world.store, "set_state", _fail)
    with pytest.raises(ChangeFailed, match=r"could not be paused: (cannot be frozen|full)"):
        await world.node.pause(record.sandbox_id)
    assert world.node.get(record.sandbox_id) == record
    assert list(world.ingress.routes) == [record.sandbox_id]
    assert not world.launcher.sandboxes[record.sandbox_id].paused
    await asyncio.sleep(1.2)
    assert world.leftovers() == []  # its time goes on


@pytest.mark.parametrize("fault", ["launcher", "store"])
async def test_a_resumption_that_fails_leaves_a_paused_sandbox(
    world: World, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = await paused(world)
    if fault == "launcher":
        world.launcher.failures["resume"] = [LauncherError("no")]
    else:
        monkeypatch.setattr(world.store, "set_state", _fail)
    with pytest.raises(ChangeFailed, match="could not be resumed"):
        await world.node.connect(name, 10)
    assert world.node.get(name).state == "paused"
    assert world.ingress.routes == {}
    assert world.launcher.sandboxes[name].paused
    monkeypatch.undo()
    assert (await world.node.connect(name, 10))[1]


async def test_a_proxy_that_is_away_holds_nothing_up(world: World) -> None:
    record = await world.node.create(request())
    world.ingress.failures = {"remove": [no_proxy()], "add": [no_proxy()]}
    await world.node.pause(record.sandbox_id)
    assert world.node.routes() == []
    await world.node.connect(record.sandbox_id, 10)
    assert [route.sandbox_id for route in world.node.routes()] == [record.sandbox_id]


async def test_connecting_waits_for_a_pause_under_way_and_then_resumes(world: World) -> None:
    record = await world.node.create(request())
    gate = world.launcher.gates["pause"] = asyncio.Event()
    pause = asyncio.create_task(world.node.pause(record.sandbox_id))
    await asyncio.sleep(0.02)
    with pytest.raises(AlreadyPaused):
        await world.node.pause(record.sandbox_id)
    assert world.node.routes() == []
    connect = asyncio.create_task(world.node.connect(record.sandbox_id, 10))
    await asyncio.sleep(0.02)
    assert not connect.done()
    gate.set()
    await pause
    assert (await connect)[1]
    assert world.node.get(record.sandbox_id).state == "running"


async def test_of_many_who_connect_one_resumes(world: World) -> None:
    name = await paused(world)
    world.log.clear()
    answers = await asyncio.gather(*(world.node.connect(name, 10 * n) for n in range(1, 6)))
    assert [resumed for _, resumed in answers].count(True) == 1
    assert world.log.count("launcher.resume") == 1
    end = world.node.get(name).end_at
    assert (end - datetime.now(UTC)).total_seconds() > 45


@pytest.mark.parametrize("operation", ["pause", "resume"])
async def test_a_kill_wins_over_a_change_under_way(world: World, operation: str) -> None:
    record = await world.node.create(request())
    if operation == "resume":
        await world.node.pause(record.sandbox_id)
    gate = world.launcher.gates[operation] = asyncio.Event()
    change = asyncio.create_task(
        world.node.pause(record.sandbox_id)
        if operation == "pause"
        else world.node.connect(record.sandbox_id, 10)
    )
    await asyncio.sleep(0.02)
    await world.node.kill(record.sandbox_id)
    gate.set()
    with pytest.raises((SandboxNotFound, SandboxEnding)):
        await change
    assert world.leftovers() == []


async def test_a_caller_who_gives_up_does_not_undo_a_pause(world: World) -> None:
    record = await world.node.create(request())
    gate = world.launcher.gates["pause"] = asyncio.Event()
    pause = asyncio.create_task(world.node.pause(record.sandbox_id))
    await asyncio.sleep(0.02)
    pause.cancel()
    await asyncio.sleep(0.02)
    gate.set()
    await asyncio.sleep(0.02)
    assert world.node.get(record.sandbox_id).state == "paused"


async def test_paused_ones_are_taken_over_by_the_next_control_process(world: World) -> None:
    name = await paused(world)
    other = (await world.node.create(request())).sandbox_id
    node = await world.restart()
    assert states(node) == {name: "paused", other: "running"}
    assert [route.sandbox_id for route in node.routes()] == [other]
    assert len(await node.entries()) == 2
    assert (await node.connect(name, 10))[1]


async def test_what_the_store_says_is_made_true_after_a_crash_in_the_middle(world: World) -> None:
    name = await paused(world)
    other = (await world.node.create(request())).sandbox_id
    await world.launcher.resume(name)
    await world.launcher.pause(other)
    await world.restart()
    assert world.launcher.sandboxes[name].paused
    assert not world.launcher.sandboxes[other].paused


async def test_a_paused_sandbox_whose_processes_died_is_gone(world: World) -> None:
    name = await paused(world)
    await world.launcher.die(name)
    await asyncio.sleep(0.05)
    assert world.leftovers() == []
    again = await paused(world)
    del world.launcher.sandboxes[again]
    await world.node.on_launcher_connect()
    await asyncio.sleep(0.05)
    assert world.leftovers() == []


async def test_paused_sandboxes_count(world: World) -> None:
    for _ in range(5):
        await paused(world)
    began = time.monotonic()
    with pytest.raises(Exception, match="limit of 5 sandboxes"):
        await world.node.create(request())
    assert time.monotonic() - began < 1


def _fail(*_: object) -> None:
    raise StoreError("full")
