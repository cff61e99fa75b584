"""Pauses sandboxes and resumes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sandgate.node.errors import ChangeFailed, SandboxEnding
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.gates import tell
from sandgate.node.parts import Parts
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import Event, State
from sandgate.runtime.client import LauncherError
from sandgate.store import PAUSED_FULL, StoreError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pauser:
    """Moves sandboxes between RUNNING and PAUSED.

    A change under way is `sandbox.change`, a task of its own: whoever asked for it may give up
    waiting. An end that begins meanwhile wins.
    """

    parts: Parts
    expiry: ExpiryQueue
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

    async def pause(self, sandbox: LiveSandbox) -> None:
        """Pause a sandbox that is RUNNING. Raises ChangeFailed, SandboxEnding."""
        sandbox.take(Event.PAUSE)
        self.expiry.discard(sandbox.sandbox_id)
        await self._under_way(sandbox, self._pause(sandbox))

    async def resume(self, sandbox: LiveSandbox, end_at: datetime) -> None:
        """Let a sandbox that is PAUSED run until `end_at`. Raises ChangeFailed, SandboxEnding."""
        sandbox.take(Event.RESUME)
        await self._under_way(sandbox, self._resume(sandbox, end_at))

    async def _under_way(self, sandbox: LiveSandbox, work: Coroutine[Any, Any, None]) -> None:
        sandbox.change = self.spawn(work)
        await asyncio.shield(sandbox.change)

    async def _pause(self, sandbox: LiveSandbox) -> None:
        began = time.perf_counter()
        name = sandbox.sandbox_id
        async with sandbox.policy_lock:
            try:
                # Without a route the sandbox is not found any more: what a caller is to be told
                # who is cut off in the next step.
                await self._route(sandbox)
                _require(sandbox, State.PAUSING)
                await self.parts.launcher.pause(name)
                _require(sandbox, State.PAUSING)
                now = min(datetime.now(UTC), sandbox.record.end_at)
                self._write(sandbox, State.PAUSED, PAUSED_FULL, now)
            except (LauncherError, StoreError) as error:
                _require(sandbox, State.PAUSING)
                await self._undo_pause(sandbox)
                raise _failed(f"sandbox {name} could not be paused", error) from error
            sandbox.take(Event.STOPPED)
        sandbox.journal.add("Sandbox paused")
        _log.info("sandbox paused id=%s ms=%.1f", name, (time.perf_counter() - began) * 1000)

    async def _undo_pause(self, sandbox: LiveSandbox) -> None:
        name = sandbox.sandbox_id
        try:
            await self.parts.launcher.resume(name)
        except LauncherError as error:
            _log.error("sandbox %s: %s", name, error)
        _require(sandbox, State.PAUSING)
        sandbox.take(Event.UNDONE)
        self.expiry.set(name, sandbox.record.end_at.timestamp())
        await self._route(sandbox)

    async def _resume(self, sandbox: LiveSandbox, end_at: datetime) -> None:
        began = time.perf_counter()
        name = sandbox.sandbox_id
        async with sandbox.policy_lock:
            try:
                await self.parts.launcher.resume(name)
                _require(sandbox, State.RESUMING)
                self._write(sandbox, State.RUNNING, None, end_at)
            except (LauncherError, StoreError) as error:
                _require(sandbox, State.RESUMING)
                await self._undo_resume(sandbox)
                raise _failed(f"sandbox {name} could not be resumed", error) from error
            sandbox.take(Event.CONTINUED)
            self.expiry.set(name, end_at.timestamp())
            await self._route(sandbox)
        sandbox.journal.add("Sandbox resumed", end_at=end_at.isoformat())
        _log.info("sandbox resumed id=%s ms=%.1f", name, (time.perf_counter() - began) * 1000)

    async def _undo_resume(self, sandbox: LiveSandbox) -> None:
        try:
            await self.parts.launcher.pause(sandbox.sandbox_id)
        except LauncherError as error:
            _log.error("sandbox %s: %s", sandbox.sandbox_id, error)
        _require(sandbox, State.RESUMING)
        sandbox.take(Event.UNDONE)

    async def _route(self, sandbox: LiveSandbox) -> None:
        """Tell the ingress what a request for the sandbox meets in its state."""
        name, ingress, route = sandbox.sandbox_id, self.parts.ingress, sandbox.route()
        await tell(ingress.remove(name) if route is None else ingress.add(route), "ingress", name)

    def _write(self, sandbox: LiveSandbox, state: State, mode: str | None, end: datetime) -> None:
        self.parts.store.set_state(sandbox.sandbox_id, state, mode, end)
        sandbox.record = replace(sandbox.record, state=state, pause_mode=mode, end_at=end)


def _require(sandbox: LiveSandbox, state: State) -> None:
    """Asked after every wait: an end may have begun."""
    if sandbox.state is not state:
        raise SandboxEnding(sandbox.sandbox_id)


def _failed(what: str, error: LauncherError | StoreError) -> ChangeFailed:
    retryable = isinstance(error, LauncherError) and error.retryable
    return ChangeFailed(f"{what}: {error}", retryable=retryable)
