"""Pausing without memory: the processes end, the disk stays, and everything else is the same."""

from __future__ import annotations

import asyncio

import pytest

from node.fakes import World, lost, no_gateway, request
from sandgate.node.errors import ChangeFailed
from sandgate.policy import parse_policy
from sandgate.runtime.client import LauncherError
from sandgate.store import NetworkConfig


async def paused(world: World, **changes: object) -> str:
    name = (await world.node.create(request(**changes))).sandbox_id
    await world.node.pause(name, memory=False)
    return name


async def test_it_has_no_processes_no_address_and_no_route(world: World) -> None:
    name = await paused(world)
    told = world.node.get(name)
    assert (told.state, told.pause_mode) == ("paused", "filesystem")
    assert world.launcher.sandboxes == {} and world.launcher.kept == {name}
    assert world.egress.entries == {} and await world.node.entries() == []
    assert world.ingress.routes == {}


async def test_it_starts_afresh_as_the_same_sandbox(world: World) -> None:
    before = await world.node.create(request(env={"A": "1"}, metadata={"b": "2"}))
    name = before.sandbox_id
    await world.node.pause(name, memory=False)
    network = NetworkConfig(deny_out=("0.0.0.0/0",))
    await world.node.update_network(name, network, None)
    after, resumed = await world.node.connect(name, 100)
    assert resumed
    assert world.launcher.specs[name].kept
    assert world.launcher.configs[name].access_token == before.envd_token
    assert dict(world.launcher.configs[name].env) == {"A": "1"}
    assert (after.metadata, after.envd_token) == (before.metadata, before.envd_token)
    assert world.launcher.kept == set()
    address = world.launcher.sandboxes[name].address
    denied = parse_policy(None, ("0.0.0.0/0",))
    assert world.launcher.policies[name] == world.egress.entries[address].policy == denied
    assert world.ingress.routes[name].address == address


async def test_one_with_memory_can_be_started_afresh_too(world: World) -> None:
    name = (await world.node.create(request())).sandbox_id
    await world.node.pause(name)
    world.log.clear()
    await world.node.connect(name, 100, memory=False)
    assert [step for step in world.log if step.startswith("launcher")] == [
        "launcher.park",
        "launcher.create",
    ]
    assert len(world.egress.entries) == 1
    assert world.node.get(name).state == "running"


async def test_at_the_end_of_its_time_the_wish_counts(world: World) -> None:
    name = (
        await world.node.create(request(timeout=1, auto_pause=True, auto_pause_memory=False))
    ).sandbox_id
    await asyncio.sleep(1.3)
    assert world.node.get(name).pause_mode == "filesystem"


async def test_killing_it_leaves_nothing(world: World) -> None:
    await world.node.kill(await paused(world))
    assert world.leftovers() == []


@pytest.mark.parametrize("crash", ["in time", "before the row was written", "before it was ended"])
async def test_it_survives_the_node(world: World, crash: str) -> None:
    name = await paused(world)
    if crash == "before the row was written":
        world.store.set_state(name, "running", None, world.node.get(name).end_at)
    elif crash == "before it was ended":
        await world.node.connect(name, 10)
        world.store.set_state(name, "paused", "filesystem", world.node.get(name).end_at)
    await world.restart()
    assert world.node.get(name).pause_mode == "filesystem"
    assert world.launcher.kept == {name} and world.launcher.sandboxes == {}
    await world.node.on_launcher_connect()
    assert (await world.node.connect(name, 10))[1]


async def test_a_disk_that_no_row_knows_goes(world: World) -> None:
    world.launcher.kept.add("istray")
    await world.restart()
    assert world.launcher.kept == set()


async def test_a_lost_disk_is_the_end(world: World) -> None:
    await paused(world)
    world.launcher.kept.clear()
    await world.node.on_launcher_connect()
    await asyncio.sleep(0.05)
    assert world.leftovers() == []


async def test_a_pause_that_fails_leaves_a_running_sandbox(world: World) -> None:
    name = (await world.node.create(request())).sandbox_id
    world.launcher.failures["park"] = [LauncherError("no room")]
    with pytest.raises(ChangeFailed, match="could not be paused: no room"):
        await world.node.pause(name, memory=False)
    assert world.node.get(name).state == "running"
    assert list(world.ingress.routes) == [name]


@pytest.mark.parametrize("part", ["launcher", "egress"])
async def test_a_resumption_that_fails_leaves_a_paused_sandbox(world: World, part: str) -> None:
    name = await paused(world)
    if part == "launcher":
        world.launcher.failures["create"] = [lost()]
    else:
        world.egress.failures["set"] = [no_gateway()]
    with pytest.raises(ChangeFailed, match="could not be resumed"):
        await world.node.connect(name, 10)
    assert world.node.get(name).pause_mode == "filesystem"
    assert world.launcher.kept == {name} and world.launcher.sandboxes == {}
    assert (await world.node.connect(name, 10))[1]


@pytest.mark.parametrize("operation", ["park", "create"])
async def test_a_kill_wins(world: World, operation: str) -> None:
    name = (await world.node.create(request())).sandbox_id
    if operation == "create":
        await world.node.pause(name, memory=False)
    gate = world.launcher.gates[operation] = asyncio.Event()
    change = asyncio.create_task(
        world.node.pause(name, memory=False)
        if operation == "park"
        else world.node.connect(name, 10)
    )
    await asyncio.sleep(0.02)
    await world.node.kill(name)
    gate.set()
    (error,) = await asyncio.gather(change, return_exceptions=True)
    assert isinstance(error, Exception)
    assert world.store.all() == [] and world.egress.entries == {} and world.ingress.routes == {}
