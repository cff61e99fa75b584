"""Snapshots and forks: copies of file systems, and sandboxes made of them."""

from __future__ import annotations

import asyncio

import pytest

from node.fakes import ME, World, request
from sandgate.accounts import OPERATOR
from sandgate.node.errors import (
    ChangeFailed,
    InvalidRequest,
    LimitReached,
    SandboxNotFound,
    SnapshotNotFound,
    StartFailed,
    TemplateNotFound,
)
from sandgate.runtime.client import LauncherError
from sandgate.store import NetworkConfig, SandboxRecord


async def test_a_sandbox_is_made_of_a_snapshot(world: World) -> None:
    source = await world.node.create(request(template="interpreter"))
    snapshot = await world.node.snapshot(source.sandbox_id, "mine")
    assert world.launcher.snapshots == {snapshot.snapshot_id}
    assert world.node.get(source.sandbox_id).state == "running"
    await world.node.kill(source.sandbox_id)
    for reference in (snapshot.snapshot_id, "mine", f"{snapshot.snapshot_id}:default"):
        made = await world.node.create(request(template=reference))
        assert made.template == "code-interpreter-v1"
        assert made.origin == snapshot.snapshot_id
        assert world.launcher.specs[made.sandbox_id].kept
        assert world.launcher.specs[made.sandbox_id].template == "code-interpreter-v1"
    assert world.launcher.kept == set()
    await world.node.snapshots.delete("mine", OPERATOR)
    assert world.launcher.snapshots == set()
    with pytest.raises(TemplateNotFound):
        await world.node.create(request(template=snapshot.snapshot_id))
    with pytest.raises(SnapshotNotFound):
        await world.node.snapshots.delete(snapshot.snapshot_id, OPERATOR)
    with pytest.raises(SnapshotNotFound):
        await world.node.snapshots.delete("base", OPERATOR)


@pytest.mark.parametrize("memory", [True, False])
async def test_a_paused_sandbox_stays_paused(world: World, memory: bool) -> None:
    name = (await world.node.create(request())).sandbox_id
    await world.node.pause(name, memory=memory)
    await world.node.snapshot(name, None)
    assert world.node.get(name).state == "paused"
    assert (await world.node.connect(name, 10))[1]


async def test_while_it_is_copied_nothing_else_changes_it_but_a_kill(world: World) -> None:
    name = (await world.node.create(request())).sandbox_id
    gate = world.launcher.gates["snapshot"] = asyncio.Event()
    copying = asyncio.create_task(world.node.snapshot(name, None))
    pausing = asyncio.create_task(world.node.pause(name))
    await asyncio.sleep(0.02)
    assert not (await world.node.connect(name, 100))[1]
    await world.node.set_timeout(name, 50)
    assert "launcher.pause" not in world.log
    gate.set()
    await asyncio.gather(copying, pausing)
    assert world.node.get(name).state == "paused"
    gate.clear()
    copying = asyncio.create_task(world.node.snapshot(name, None))
    await asyncio.sleep(0.02)
    world.launcher.failures["snapshot"] = [LauncherError("it ended")]
    await world.node.kill(name)
    gate.set()
    with pytest.raises(SandboxNotFound):
        await copying


async def test_a_snapshot_that_fails_harms_nothing(world: World) -> None:
    name = (await world.node.create(request())).sandbox_id
    world.launcher.failures["snapshot"] = [LauncherError("no room")]
    with pytest.raises(ChangeFailed, match="no room"):
        await world.node.snapshot(name, None)
    assert world.node.get(name).state == "running"
    assert world.store.snapshots() == []
    with pytest.raises(InvalidRequest, match="invalid name 'No!'"):
        await world.node.snapshot(name, "No!")
    with pytest.raises(SandboxNotFound):
        await world.node.snapshot("inobody", None)


async def test_a_create_of_a_snapshot_that_fails_leaves_nothing(world: World) -> None:
    source = await world.node.create(request())
    snapshot = await world.node.snapshot(source.sandbox_id, None)
    for operation in ("clone", "create"):
        world.launcher.failures[operation] = [LauncherError("no room")]
        with pytest.raises(StartFailed, match="no room"):
            await world.node.create(request(template=snapshot.snapshot_id))
    await world.node.kill(source.sandbox_id)
    assert world.leftovers() == []


async def test_copies_and_rows_agree_after_a_restart(world: World) -> None:
    source = await world.node.create(request())
    lost, kept = [await world.node.snapshot(source.sandbox_id, None) for _ in range(2)]
    world.launcher.snapshots.discard(lost.snapshot_id)
    world.launcher.snapshots.add("sstray")
    await world.restart()
    assert world.launcher.snapshots == {kept.snapshot_id}
    assert world.store.snapshots() == [kept]


async def test_forks_are_like_the_original_but_for_their_names(world: World) -> None:
    source = await world.node.create(
        request(
            metadata={"a": "b"},
            env={"C": "d"},
            network=NetworkConfig(deny_out=("0.0.0.0/0",), allow_public_traffic=False),
        )
    )
    forks = await world.node.fork(source.sandbox_id, ME, 30, 2)
    assert world.launcher.snapshots == set()
    names = {source.sandbox_id}
    for fork in forks:
        assert isinstance(fork, SandboxRecord)
        assert (fork.metadata, fork.env, fork.network) == ({"a": "b"}, {"C": "d"}, source.network)
        assert fork.envd_token != source.envd_token != fork.traffic_token
        assert (fork.origin, fork.template) == (None, "base")
        names.add(fork.sandbox_id)
    assert len(names) == 3
    assert world.node.get(source.sandbox_id).state == "running"


async def test_each_fork_fails_by_itself(world: World) -> None:
    source = await world.node.create(request())
    forks = await world.node.fork(source.sandbox_id, ME, 30, 6)
    assert [type(fork) for fork in forks] == [SandboxRecord] * 4 + [LimitReached] * 2
    assert world.launcher.snapshots == set()
