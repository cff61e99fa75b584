"""Sandboxes are measured while they run, and their past survives the process."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from node.fakes import World, lost, make_world, request
from sandgate.node import observer
from sandgate.node.errors import SandboxNotFound
from sandgate.node.journal import JournalQuery
from sandgate.store import NetworkConfig, NoteKind


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample every 20 ms."""
    defaults = observer.Observer.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "period", 0.02)


def messages(world: World, sandbox_id: str) -> list[str]:
    found = world.node.observe(sandbox_id).journal.find(JournalQuery())
    return [entry.message for entry in found]


async def measured(world: World, sandbox_id: str, count: int) -> None:
    async with asyncio.timeout(5):
        while len(world.node.observe(sandbox_id).meter.history) < count:  # noqa: ASYNC110 - polls
            await asyncio.sleep(0.01)


async def test_a_running_sandbox_is_measured_until_its_end(world: World) -> None:
    made = (await world.node.create(request())).sandbox_id
    await measured(world, made, 2)
    (sample, *_) = world.node.observe(made).meter.history.between(None, None)
    assert (sample.memory, sample.cache, sample.disk) == (1 << 20, 2 << 20, 3 << 20)
    await world.node.kill(made)
    with pytest.raises(SandboxNotFound):
        world.node.observe(made)
    await asyncio.sleep(0.1)
    assert world.store.notes(NoteKind.METRICS) == world.store.notes(NoteKind.JOURNAL) == {}


async def test_many_sandboxes_are_measured_a_few_at_a_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "_AT_ONCE", 2)
    made = [(await world.node.create(request())).sandbox_id for _ in range(5)]
    for sandbox_id in made:
        await measured(world, sandbox_id, 1)


async def test_a_launcher_that_is_away_leaves_a_gap(world: World) -> None:
    made = (await world.node.create(request())).sandbox_id
    world.launcher.failures["usage"] = [lost(), lost()]
    await measured(world, made, 2)
    assert world.launcher.failures["usage"] == []


async def test_the_past_survives_a_restart(world: World) -> None:
    made = (await world.node.create(request(metadata={}))).sandbox_id
    await world.node.set_timeout(made, 100)
    await world.node.update_network(made, NetworkConfig(deny_out=("1.1.1.1",)), None)
    await measured(world, made, 3)
    await world.restart()
    before = world.node.observe(made).meter.history
    assert len(before) >= 3
    assert messages(world, made) == [
        "Sandbox started",
        "Network policy in force",
        "End of the sandbox's time changed",
        "Network policy in force",
        "The node's control process started again",
    ]
    entries = world.node.observe(made).journal.find(JournalQuery(search="Network"))
    assert [entry.fields for entry in entries] == [{}, {"deny_out": "1.1.1.1"}]
    await measured(world, made, len(before) + 1)


async def test_a_crash_costs_no_more_than_a_minute(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await world.node.create(request())).sandbox_id
    await measured(world, made, observer._SAVE_AFTER + 1)
    assert len(world.store.notes(NoteKind.METRICS)[made].data) > 0
    assert made in world.store.notes(NoteKind.JOURNAL)


async def test_a_damaged_past_is_forgotten(world: World) -> None:
    made = (await world.node.create(request())).sandbox_id
    await world.node.close()
    for kind in (NoteKind.METRICS, NoteKind.JOURNAL):
        world.store.write_notes(kind, {made: b"damaged"})
    world.new_node()
    await world.node.start()
    assert messages(world, made) == ["The node's control process started again"]
    await measured(world, made, 1)


async def test_a_load_is_of_all_processors_of_the_sandbox(tmp_path: Path) -> None:
    world = make_world(tmp_path, cpu_count=4)
    await world.node.start()
    try:
        made = (await world.node.create(request())).sandbox_id
        await measured(world, made, 1)
        world.launcher.uses = replace(world.launcher.uses, cpu_ns=10**15)
        await asyncio.sleep(0.1)
        samples = world.node.observe(made).meter.history.between(None, None)
        assert 100 in [sample.cpu_pct for sample in samples]
    finally:
        await world.node.close()
        world.store.close()
