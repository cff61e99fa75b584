"""When there is no room for one more sandbox, and what is said of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from node.fakes import ME, World, request
from sandgate.node import admittance
from sandgate.node.admission import Readings, needs, shortage
from sandgate.node.admittance import Admittance
from sandgate.node.errors import LimitReached, NodeError, NoSpace
from sandgate.node.registry import Registry
from sandgate.settings import Settings

PLENTY = Readings(
    memory_mb=10_000,
    disk_mb=10_000,
    inodes=100_000,
    files=10_000,
    tasks=10_000,
    connections=100_000,
    neighbours=1000,
)
NEEDS = needs(Settings())


@pytest.mark.parametrize(
    ("field", "enough", "said", "storage"),
    [
        ("memory_mb", 272, "memory_reserve_mb", False),
        ("disk_mb", 1028, "disk_reserve_mb", True),
        ("inodes", 1004, "inodes", True),
        ("files", 264, "LimitNOFILE", False),
        ("tasks", 520, "kernel.pid_max", False),
        ("connections", 1032, "nf_conntrack_max", False),
        ("neighbours", 33, "gc_thresh3", False),
    ],
)
def test_each_thing_is_refused_while_there_still_is_some(
    field: str, enough: int, said: str, storage: bool
) -> None:
    assert shortage(replace(PLENTY, **{field: enough}), NEEDS) is None
    found = shortage(replace(PLENTY, **{field: enough - 1}), NEEDS)
    assert found is not None and found.storage is storage
    assert said in found.reason and str(enough - 1) in found.reason
    assert shortage(replace(PLENTY, **{field: enough}), NEEDS, unseen=1) is not None
    assert shortage(replace(PLENTY, **{field: None}), NEEDS, unseen=100) is None


def test_a_copy_needs_its_size_on_the_disk() -> None:
    assert shortage(PLENTY, NEEDS, extra_disk_mb=8000) is None
    found = shortage(PLENTY, NEEDS, extra_disk_mb=9000)
    assert found is not None and "9000 MiB are to be copied" in found.reason


def test_readings_are_taken_again_only_after_a_while(world: World) -> None:
    now = 100.0
    gate = Admittance(world.settings, Registry(), world.gauge, lambda: now)
    room = (20 - 1) * 16  # for so many until the next reading
    world.gauge.readings = replace(PLENTY, memory_mb=256 + room)
    for _ in range(19):
        gate.admit(ME)
    assert world.gauge.times == 1
    with pytest.raises(LimitReached, match="memory_reserve_mb"):
        gate.admit(ME)
    now += admittance.FRESH_SECONDS
    gate.admit(ME)
    assert world.gauge.times == 2


@pytest.mark.parametrize(
    ("readings", "expected"),
    [(Readings(memory_mb=1), LimitReached), (Readings(disk_mb=1), NoSpace)],
)
async def test_a_create_that_is_refused_touches_nothing_and_others_go_on(
    world: World, readings: Readings, expected: type[NodeError]
) -> None:
    before = await world.node.create(request())
    world.gauge.readings = readings
    await asyncio.sleep(admittance.FRESH_SECONDS)
    steps = len(world.log)
    with pytest.raises(expected, match="no room"):
        await world.node.create(request())
    with pytest.raises(expected):
        await world.node.snapshot(before.sandbox_id, None)
    with pytest.raises(expected):
        await world.node.fork(before.sandbox_id, ME, 30, 1)
    assert world.log[steps:] == []
    await world.node.pause(before.sandbox_id)
    await world.node.connect(before.sandbox_id, 60)
    await world.node.kill(before.sandbox_id)
    assert world.leftovers() == []


async def test_too_many_creates_at_once_are_shed(world: World) -> None:
    world.node._admittance._settings = world.settings.model_copy(update={"max_creates_at_once": 2})
    gate = world.launcher.gates["create"] = asyncio.Event()
    tasks = [asyncio.create_task(world.node.create(request())) for _ in range(2)]
    await asyncio.sleep(0.05)
    with pytest.raises(LimitReached, match="max_creates_at_once") as raised:
        await world.node.create(request())
    assert raised.value.repeat and raised.value.retry_after == admittance.BUSY_SECONDS
    gate.set()
    await asyncio.gather(*tasks)
    await world.node.create(request())
