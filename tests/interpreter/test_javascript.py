"""The kernel of JavaScript, on the Node.js of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sandgate.interpreter import javascript
from sandgate.interpreter.javascript import NodeKernel
from sandgate.interpreter.kernel import Request


@pytest.fixture
async def kernel(tmp_path: Path) -> AsyncIterator[NodeKernel]:
    """A kernel without a sandbox around it."""
    started = await javascript.start(str(tmp_path), {}, typescript=False)
    yield started
    await started.kill()


async def execute(kernel: NodeKernel, code: str, *, interrupt: bool = False) -> list[str]:
    """Run code, and interrupt it at its first line. What came of it."""
    said: list[str] = []

    async def emit(event: dict[str, Any]) -> None:
        if event["type"] == "stdout" and interrupt and not said:
            kernel.interrupt()
        if event["type"] != "number_of_executions":
            said.append(event.get("text") or event["name"])

    async with asyncio.timeout(20):
        await kernel.execute(Request(code, {}, {}), emit)
    return said


async def test_an_interrupt_hits_what_runs_and_nothing_later(kernel: NodeKernel) -> None:
    """Also one that comes while Node itself goes over from running to waiting."""
    for waiting in 30 * ["await new Promise(() => {})", "for (;;);"]:
        code = f"console.log(1); {waiting}"
        assert await execute(kernel, code, interrupt=True) == ["1\n", "Interrupted"]
        later = "for (let i = 0; i < 1e6; i++); console.log(2)"
        assert await execute(kernel, later) == ["2\n"]


async def test_what_replaces_the_timers_does_not_keep_an_interrupt_out(kernel: NodeKernel) -> None:
    code = "setInterval = clearInterval = () => 0; console.log(1); await new Promise(() => {})"
    assert await execute(kernel, code, interrupt=True) == ["1\n", "Interrupted"]
    assert await execute(kernel, "setInterval()") == ["0"]
