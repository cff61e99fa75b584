"""Sandboxes end on time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from sandgate.node.expiry import ExpiryQueue


class Recorder:
    """Notes what expired, and when."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.late: list[float] = []
        self.queue = ExpiryQueue(self._expired)
        self.due: dict[str, float] = {}

    def set(self, name: str, seconds: float) -> None:
        self.due[name] = time.time() + seconds
        self.queue.set(name, self.due[name])

    def _expired(self, name: str) -> None:
        self.seen.append(name)
        self.late.append(time.time() - self.due[name])


@pytest.fixture
async def recorder() -> AsyncIterator[Recorder]:
    """With its queue running."""
    made = Recorder()
    task = asyncio.create_task(made.queue.run())
    yield made
    task.cancel()


async def test_they_expire_in_order_and_within_a_tenth_of_a_second(recorder: Recorder) -> None:
    await asyncio.sleep(0.01)
    recorder.set("third", 0.15)
    recorder.set("first", 0.05)
    recorder.set("second", 0.1)
    await asyncio.sleep(0.3)
    assert recorder.seen == ["first", "second", "third"]
    assert all(0 <= late < 0.1 for late in recorder.late)
    assert len(recorder.queue) == 0


async def test_the_last_moment_that_was_set_counts(recorder: Recorder) -> None:
    recorder.set("longer", 0.05)
    recorder.set("longer", 0.3)
    recorder.set("shorter", 5)
    recorder.set("shorter", 0.05)
    await asyncio.sleep(0.15)
    assert recorder.seen == ["shorter"]
    await asyncio.sleep(0.25)
    assert recorder.seen == ["shorter", "longer"]


async def test_what_is_discarded_never_expires(recorder: Recorder) -> None:
    recorder.set("gone", 0.05)
    recorder.set("stays", 0.06)
    recorder.queue.discard("gone")
    recorder.queue.discard("unknown")
    await asyncio.sleep(0.15)
    assert recorder.seen == ["stays"]


async def test_the_past_expires_at_once(recorder: Recorder) -> None:
    recorder.set("late", -1000)
    await asyncio.sleep(0.02)
    assert recorder.seen == ["late"]


async def test_setting_the_same_again_and_again_takes_no_memory() -> None:
    recorder = Recorder()
    for seconds in range(10_000):
        recorder.set("busy", 1000 + seconds)
    assert len(recorder.queue._heap) < 200
