"""Sandboxes outlive the control process, and are taken over by the next."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

import pytest

from node.fakes import World, lost, no_gateway, no_proxy, request
from sandgate.node.errors import NotReady, SandboxNotFound
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime.client import LauncherError
from sandgate.runtime.protocol import Launched
from sandgate.store import ListQuery, NetworkConfig

NETWORK = NetworkConfig(
    allow_out=("*.example.com", "1.1.1.1"),
    deny_out=("0.0.0.0/0",),
    allow_public_traffic=False,
    mask_request_host="localhost:${PORT}",
    https_ports=(8443,),
)


async def test_a_sandbox_is_adopted_with_all_that_belongs_to_it(world: World) -> None:
    record = await world.node.create(request(network=NETWORK, metadata={"a": "b"}))
    entries, routes = await world.node.entries(), world.node.routes()
    world.launcher.policies[record.sandbox_id] = EgressPolicy()
    node = await world.restart()
    assert node.get(record.sandbox_id) == record
    assert world.launcher.policies[record.sandbox_id] == parse_policy(
        NETWORK.allow_out, NETWORK.deny_out
    )
    assert await node.entries() == entries
    assert node.routes() == routes
    await node.kill(record.sandbox_id)
    assert world.leftovers() == []


async def test_the_policy_that_was_changed_last_is_adopted(world: World) -> None:
    record = await world.node.create(request(internet=False))
    await world.node.update_network(record.sandbox_id, NetworkConfig(), None)
    await world.restart()
    assert world.launcher.policies[record.sandbox_id] == EgressPolicy()


async def test_an_adopted_sandbox_ends_on_time(world: World) -> None:
    record = await world.node.create(request(timeout=1))
    node = await world.restart()
    assert node.get(record.sandbox_id).end_at == record.end_at
    await asyncio.sleep(1.1)
    assert world.leftovers() == []


async def test_a_sandbox_whose_time_ran_out_meanwhile_is_ended(world: World) -> None:
    await world.node.create(request(timeout=1))
    await world.node.close()
    await asyncio.sleep(1.01)
    assert len(world.launcher.sandboxes) == 1
    await world.new_node().start()
    await asyncio.sleep(0.05)
    assert world.leftovers() == []


async def test_a_row_without_a_process_is_forgotten(world: World) -> None:
    record = await world.node.create(request())
    world.launcher.sandboxes.clear()
    node = await world.restart()
    assert world.store.all() == []
    with pytest.raises(SandboxNotFound):
        node.get(record.sandbox_id)


async def test_a_process_without_a_row_is_ended(world: World) -> None:
    stray = Launched("istray", 7, IPv4Address("198.18.0.23"), 5000)
    world.launcher.sandboxes["istray"] = stray
    await world.restart()
    assert world.launcher.sandboxes == {}


async def test_a_stray_process_that_cannot_be_ended_does_not_keep_the_node_down(
    world: World,
) -> None:
    stray = Launched("istray", 7, IPv4Address("198.18.0.23"), 5000)
    world.launcher.sandboxes["istray"] = stray
    world.launcher.failures["kill"] = [LauncherError("busy")]
    node = await world.restart()
    assert node.health().ready
    await node.on_launcher_connect()
    assert world.launcher.sandboxes == {}


async def test_until_sandboxes_are_adopted_nothing_is_answered(world: World) -> None:
    record = await world.node.create(request())
    await world.node.close()
    world.launcher.gates["running"] = asyncio.Event()
    node = world.new_node()
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0.01)
    assert node.health().components["sandboxes"] is False
    with pytest.raises(NotReady):
        node.get(record.sandbox_id)
    with pytest.raises(NotReady):
        await node.kill(record.sandbox_id)
    with pytest.raises(NotReady):
        node.find(ListQuery(states=frozenset({"running"})))
    with pytest.raises(NotReady):
        await node.create(request())
    world.launcher.gates["running"].set()
    await starting
    assert node.get(record.sandbox_id) == record


async def test_an_exit_that_is_reported_during_adoption_is_not_missed(world: World) -> None:
    record = await world.node.create(request())
    await world.node.close()
    node = world.new_node()
    await node.on_exit(record.sandbox_id)
    await node.start()
    await asyncio.sleep(0.01)
    assert world.leftovers() == []


async def test_a_sandbox_whose_policy_the_kernel_refuses_is_ended(world: World) -> None:
    await world.node.create(request())
    world.launcher.failures["set_policy"] = [LauncherError("no memory")]
    await world.restart()
    await asyncio.sleep(0.01)
    assert world.leftovers() == []


async def test_when_the_launcher_is_back_the_dead_are_found_and_the_rules_renewed(
    world: World,
) -> None:
    dead = await world.node.create(request())
    alive = await world.node.create(request(internet=False))
    del world.launcher.sandboxes[dead.sandbox_id]
    world.launcher.policies[alive.sandbox_id] = EgressPolicy()
    await world.node.on_launcher_connect()
    await asyncio.sleep(0.01)
    assert [record.sandbox_id for record in world.store.all()] == [alive.sandbox_id]
    assert world.launcher.policies[alive.sandbox_id] == parse_policy(None, ["0.0.0.0/0"])


async def test_a_sandbox_being_created_when_the_launcher_comes_back_is_left_alone(
    world: World,
) -> None:
    world.egress.gates["set"] = asyncio.Event()
    creating = asyncio.create_task(world.node.create(request()))
    await asyncio.sleep(0.01)
    await world.node.on_launcher_connect()
    world.egress.gates["set"].set()
    record = await creating
    assert world.node.get(record.sandbox_id) == record


async def test_a_launcher_that_goes_away_again_ends_no_sandbox(world: World) -> None:
    record = await world.node.create(request())
    world.launcher.failures["set_policy"] = [lost()]
    await world.node.on_launcher_connect()
    assert world.node.get(record.sandbox_id) == record


async def test_a_gate_that_is_not_there_yet_is_waited_for(world: World) -> None:
    await world.node.close()
    world.ingress.failures["start"] = [ConnectionError("stop here")]
    with pytest.raises(ConnectionError):
        await world.new_node().start()
    world.ingress.failures["start"] = [no_proxy(), no_proxy()]
    await world.restart()
    assert world.node.health().ready


async def test_gates_are_started_while_a_resumption_waits_for_them(world: World) -> None:
    """It holds what the start needs to make sure of policies."""
    record = await world.node.create(request())
    await world.node.pause(record.sandbox_id, memory=False)
    await world.node.close()
    world.launcher.sandboxes["istray"] = Launched("istray", 7, IPv4Address("198.18.0.23"), 5000)
    world.launcher.gates["kill"] = asyncio.Event()
    world.egress.gates["set"] = asyncio.Event()
    world.egress.failures["start"] = [no_gateway()]
    node = world.new_node()
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0.01)
    resuming = asyncio.create_task(node.connect(record.sandbox_id, 60))
    await asyncio.sleep(0.01)
    world.launcher.gates["kill"].set()
    await asyncio.sleep(0.01)
    assert world.egress.failures["start"] == []  # it was tried
    world.egress.gates["set"].set()
    await asyncio.gather(starting, resuming)
    assert node.get(record.sandbox_id).state == "running"
