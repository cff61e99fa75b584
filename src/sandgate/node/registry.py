"""The sandboxes that are alive and the work that is done for them in the background."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from sandgate.node.errors import NodeError, NotReady, SandboxEnding, SandboxNotFound
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import ALIVE, State

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """A sandbox that ended unseen."""

    owner: str
    why: str


@dataclass(slots=True)
class Registry:
    """What all that act on sandboxes share. Belongs to one event loop."""

    live: dict[str, LiveSandbox] = field(default_factory=dict)
    """By name; from before a sandbox is launched until nothing of it is left."""
    adopted: bool = False
    """Are the sandboxes of an earlier process among them?"""
    lost: dict[str, Lost] = field(default_factory=dict)
    """By name: those of an earlier process that were gone when this one started."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def require_adopted(self) -> None:
        """Raises NotReady as long as not all sandboxes are known."""
        if not self.adopted:
            raise NotReady("the node is starting: its sandboxes are being taken over")

    def observe(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is there for its users. Raises SandboxNotFound, NotReady."""
        self.require_adopted()
        sandbox = self.live.get(sandbox_id)
        if sandbox is None or sandbox.state not in ALIVE:
            raise SandboxNotFound(sandbox_id)
        return sandbox

    def present(self, sandbox_id: str) -> LiveSandbox:
        """As :meth:`observe`, but raises SandboxEnding for one that is being ended."""
        sandbox = self.live.get(sandbox_id)
        if sandbox is not None and sandbox.state is State.KILLING:
            raise SandboxEnding(sandbox_id)
        return self.observe(sandbox_id)

    def running(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is not paused. Raises SandboxNotFound, NotReady."""
        sandbox = self.observe(sandbox_id)
        if sandbox.state not in (State.RUNNING, State.SNAPSHOTTING):
            raise SandboxNotFound(sandbox_id)
        return sandbox

    async def settled(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is not just being paused, resumed or copied: waits until it is so.

        Raises SandboxNotFound, NotReady.
        """
        while True:
            sandbox = self.observe(sandbox_id)
            if sandbox.state in (State.RUNNING, State.PAUSED):
                return sandbox
            await sandbox.settle()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do `work` in the background. A failure that nobody expects is logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def stop(self) -> None:
        """Cancel what is done in the background."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A NodeError is told to whoever asked for the work.
        if not isinstance(error, NodeError):
            _log.error("background work failed: %s", error, exc_info=error)
