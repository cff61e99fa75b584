"""A policy is replaced in kernel and gateway, or nowhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from node.fakes import World, lost, no_gateway, request
from sandgate.egress.table import SandboxEntry
from sandgate.node import enforcement
from sandgate.node.errors import InvalidRequest, NotApplied, SandboxEnding, SandboxNotFound
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime.client import LauncherError
from sandgate.store import NetworkConfig, StoreError

ONE = NetworkConfig(allow_out=("1.1.1.1",), deny_out=("0.0.0.0/0",))
ONE_POLICY = parse_policy(["1.1.1.1"], ["0.0.0.0/0"])
PRIVATE = NetworkConfig(
    deny_out=("8.8.8.8",), allow_public_traffic=False, mask_request_host="localhost"
)
OLD_POLICY = parse_policy(None, ["8.8.8.8"])


def in_force(world: World, sandbox_id: str) -> tuple[EgressPolicy, EgressPolicy]:
    """What kernel and gateway enforce."""
    (entry,) = world.egress.entries.values()
    return world.launcher.policies[sandbox_id], entry.policy


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in the background."""
    for _ in range(5000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


@pytest.fixture
async def sandbox_id(world: World) -> str:
    """A private sandbox that may not reach 8.8.8.8."""
    return (await world.node.create(request(network=PRIVATE))).sandbox_id


async def test_the_new_policy_is_in_force_and_kept_and_the_ingress_untouched(
    world: World, sandbox_id: str
) -> None:
    before = world.ingress.routes[sandbox_id]
    del world.log[:]
    await world.node.update_network(sandbox_id, ONE, None)
    assert world.log == ["launcher.set_policy", "egress.set"]
    assert in_force(world, sandbox_id) == (ONE_POLICY, ONE_POLICY)
    network = world.node.get(sandbox_id).network
    assert network == NetworkConfig(("1.1.1.1",), ("0.0.0.0/0",), False, "localhost")
    assert world.store.all() == [world.node.get(sandbox_id)]
    assert world.ingress.routes[sandbox_id] == before
    assert [entry.policy for entry in await world.node.entries()] == [ONE_POLICY]


async def test_what_is_left_out_is_cleared(world: World) -> None:
    record = await world.node.create(request(network=ONE, internet=False))
    await world.node.update_network(record.sandbox_id, NetworkConfig(), None)
    assert in_force(world, record.sandbox_id) == (EgressPolicy(), EgressPolicy())
    changed = world.node.get(record.sandbox_id)
    assert (changed.network, changed.internet) == (NetworkConfig(), None)


async def test_internet_off_denies_all_but_what_is_allowed(world: World, sandbox_id: str) -> None:
    await world.node.update_network(sandbox_id, NetworkConfig(allow_out=("1.1.1.1",)), False)
    assert in_force(world, sandbox_id) == (ONE_POLICY, ONE_POLICY)
    assert world.node.get(sandbox_id).internet is False


async def test_an_invalid_policy_changes_nothing(world: World, sandbox_id: str) -> None:
    with pytest.raises(InvalidRequest, match=r"denied CIDR google\.com"):
        await world.node.update_network(sandbox_id, NetworkConfig(deny_out=("google.com",)), None)
    assert in_force(world, sandbox_id) == (OLD_POLICY, OLD_POLICY)


async def test_an_unknown_sandbox_is_reported(world: World) -> None:
    with pytest.raises(SandboxNotFound):
        await world.node.update_network("nothere", ONE, None)


async def test_updates_of_one_sandbox_take_effect_one_after_the_other(
    world: World, sandbox_id: str
) -> None:
    del world.log[:]
    world.egress.gates["set"] = asyncio.Event()
    updates = [
        asyncio.create_task(
            world.node.update_network(sandbox_id, NetworkConfig(deny_out=(f"1.1.1.{n}",)), None)
        )
        for n in range(5)
    ]
    await asyncio.sleep(0.02)
    assert world.log == ["launcher.set_policy", "egress.set"]
    world.egress.gates["set"].set()
    await asyncio.gather(*updates)
    assert world.log == ["launcher.set_policy", "egress.set"] * 5
    last = parse_policy(None, ["1.1.1.4"])
    assert in_force(world, sandbox_id) == (last, last)


@pytest.mark.parametrize(
    ("part", "operation", "failures"),
    [
        ("launcher", "set_policy", [LauncherError("no memory")]),
        ("launcher", "set_policy", [lost(), lost()]),
        ("egress", "set", [no_gateway()]),
        ("egress", "set", [no_gateway(), no_gateway()]),
    ],
)
async def test_if_a_part_fails_the_old_policy_is_restored(
    world: World, sandbox_id: str, part: str, operation: str, failures: list[Exception]
) -> None:
    getattr(world, part).failures[operation] = list(failures)
    with pytest.raises(NotApplied, match=f"the old ones hold: {failures[0]}"):
        await world.node.update_network(sandbox_id, ONE, None)
    assert in_force(world, sandbox_id) == (OLD_POLICY, OLD_POLICY)
    assert world.node.get(sandbox_id).network == PRIVATE
    assert world.store.all() == [world.node.get(sandbox_id)]
    assert [entry.policy for entry in await world.node.entries()] == [OLD_POLICY]


async def test_what_is_under_way_when_another_part_fails_is_called_off(
    world: World, sandbox_id: str
) -> None:
    """Else it could come after the old policy, and stay."""
    world.egress.gates["set"] = asyncio.Event()
    world.launcher.failures["set_policy"] = [LauncherError("no memory")]
    seen: list[EgressPolicy] = []

    class Noted(dict[IPv4Address, SandboxEntry]):
        def __setitem__(self, address: IPv4Address, entry: SandboxEntry) -> None:
            seen.append(entry.policy)
            super().__setitem__(address, entry)

    world.egress.entries = Noted(world.egress.entries)
    del world.log[:]
    update = asyncio.create_task(world.node.update_network(sandbox_id, ONE, None))
    await until(lambda: world.log.count("egress.set") == 2)  # the old policy is on its way
    world.egress.gates["set"].set()
    with pytest.raises(NotApplied, match="no memory"):
        await update
    assert seen == [OLD_POLICY]


async def test_if_the_store_fails_the_old_policy_is_restored(
    world: World, sandbox_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("disk full")

    monkeypatch.setattr(world.store, "set_network", refuse)
    with pytest.raises(StoreError):
        await world.node.update_network(sandbox_id, ONE, None)
    assert in_force(world, sandbox_id) == (OLD_POLICY, OLD_POLICY)
    assert world.node.get(sandbox_id).network == PRIVATE


async def test_an_update_that_is_cancelled_is_rolled_back(world: World, sandbox_id: str) -> None:
    world.egress.gates["set"] = asyncio.Event()
    update = asyncio.create_task(world.node.update_network(sandbox_id, ONE, None))
    await asyncio.sleep(0.01)
    assert world.launcher.policies[sandbox_id] == ONE_POLICY
    update.cancel()
    await asyncio.sleep(0.01)
    world.egress.gates["set"].set()
    with pytest.raises(asyncio.CancelledError):
        await update
    assert in_force(world, sandbox_id) == (OLD_POLICY, OLD_POLICY)


async def test_if_nothing_can_be_put_in_force_the_sandbox_is_ended(
    world: World, sandbox_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enforcement, "RESTORE_SECONDS", 0.3)
    world.launcher.failures["set_policy"] = [LauncherError("no memory") for _ in range(9)]
    with pytest.raises(NotApplied, match="is being ended"):
        await world.node.update_network(sandbox_id, ONE, None)
    await until(lambda: world.leftovers() == [])


async def test_a_kill_does_not_wait_for_an_update_and_leaves_no_entry_behind(
    world: World, sandbox_id: str
) -> None:
    world.launcher.gates["set_policy"] = asyncio.Event()
    update = asyncio.create_task(world.node.update_network(sandbox_id, ONE, None))
    await asyncio.sleep(0.01)
    await world.node.kill(sandbox_id)
    world.launcher.gates["set_policy"].set()
    with pytest.raises(SandboxNotFound):
        await update
    assert world.leftovers() == []


async def test_an_update_of_a_sandbox_that_is_being_ended_says_so(
    world: World, sandbox_id: str
) -> None:
    world.launcher.gates["set_policy"] = asyncio.Event()
    update = asyncio.create_task(world.node.update_network(sandbox_id, ONE, None))
    await asyncio.sleep(0.01)
    world.launcher.gates["kill"] = asyncio.Event()
    kill = asyncio.create_task(world.node.kill(sandbox_id))
    await asyncio.sleep(0.01)
    world.launcher.gates["set_policy"].set()
    with pytest.raises(SandboxEnding):
        await update
    world.launcher.gates["kill"].set()
    await kill
    assert world.leftovers() == []
