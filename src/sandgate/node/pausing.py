"""Pauses sandboxes and resumes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from sandgate.node.ending import Ender
from sandgate.node.errors import AlreadyPaused, ChangeFailed, SandboxEnding, SandboxNotFound
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.gates import tell
from sandgate.node.parts import Parts
from sandgate.node.plans import envd_config, launch_spec
from sandgate.node.ports import GATE_ERRORS
from sandgate.node.registry import Registry
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import Event, State
from sandgate.runtime.client import LauncherError
from sandgate.store import PAUSED_FILESYSTEM, PAUSED_FULL, StoreError

_ERRORS = (LauncherError, StoreError, *GATE_ERRORS)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pauser:
    """Moves sandboxes between RUNNING and PAUSED.

    A change under way is `sandbox.change`, a task of its own: whoever asked for it may give up
    waiting. An end that begins meanwhile wins.
    """

    parts: Parts
    registry: Registry
    expiry: ExpiryQueue
    ender: Ender

    async def pause(self, sandbox_id: str, *, memory: bool) -> None:
        """Pause a sandbox, after whatever else is under way. `memory`: keep it and the processes.

        Raises SandboxNotFound, AlreadyPaused, ChangeFailed, NotReady.
        """
        while True:
            sandbox = self.registry.observe(sandbox_id)
            if sandbox.state in (State.PAUSING, State.PAUSED):
                raise AlreadyPaused(sandbox_id)
            if sandbox.state is State.RUNNING:
                break
            await sandbox.settle()
        sandbox.take(Event.PAUSE)
        self.expiry.discard(sandbox_id)
        try:
            await self._under_way(sandbox, self._pause(sandbox, memory))
        except SandboxEnding:
            raise SandboxNotFound(sandbox_id) from None

    async def resume(self, sandbox: LiveSandbox, end_at: datetime, *, memory: bool) -> None:
        """Let a sandbox that is PAUSED run until `end_at`. Without `memory` it starts afresh.

        Raises ChangeFailed, SandboxEnding.
        """
        sandbox.take(Event.RESUME)
        await self._under_way(sandbox, self._resume(sandbox, end_at, memory))

    async def _under_way(self, sandbox: LiveSandbox, work: Coroutine[Any, Any, None]) -> None:
        sandbox.change = self.registry.spawn(work)
        await asyncio.shield(sandbox.change)

    async def _pause(self, sandbox: LiveSandbox, memory: bool) -> None:
        began = time.perf_counter()
        name = sandbox.sandbox_id
        mode = PAUSED_FULL if memory else PAUSED_FILESYSTEM
        async with sandbox.policy_lock:
            try:
                # Without a route the sandbox is not found any more: what a caller is to be told
                # who is cut off in the next step.
                await self._route(sandbox)
                _require(sandbox, State.PAUSING)
                if memory:
                    await self.parts.launcher.pause(name)
                else:
                    await self._park(sandbox)
                _require(sandbox, State.PAUSING)
                now = min(datetime.now(UTC), sandbox.record.end_at)
                self._write(sandbox, State.PAUSED, mode, now)
            except _ERRORS as error:
                _require(sandbox, State.PAUSING)
                await self._undo_pause(sandbox, memory)
                raise _failed(f"sandbox {name} could not be paused", error) from error
            sandbox.take(Event.STOPPED)
        sandbox.journal.add("Sandbox paused", kept=mode)
        _log.info(
            "sandbox paused id=%s kept=%s ms=%.1f", name, mode, (time.perf_counter() - began) * 1000
        )

    async def _undo_pause(self, sandbox: LiveSandbox, memory: bool) -> None:
        name = sandbox.sandbox_id
        try:
            if memory:
                await self.parts.launcher.resume(name)
            elif sandbox.address is None:
                await self._boot(sandbox)
            elif name not in {item.sandbox_id for item in await self.parts.launcher.running()}:
                _require(sandbox, State.PAUSING)
                self.ender.begin(sandbox, Event.EXITED)
        except _ERRORS as error:
            _log.error("sandbox %s: %s", name, error)
        _require(sandbox, State.PAUSING)
        if sandbox.address is None:
            self.ender.begin(sandbox, Event.EXITED)
            return
        sandbox.take(Event.UNDONE)
        self.expiry.set(name, sandbox.record.end_at.timestamp())
        await self._route(sandbox)

    async def _resume(self, sandbox: LiveSandbox, end_at: datetime, memory: bool) -> None:
        began = time.perf_counter()
        name = sandbox.sandbox_id
        afresh = not memory or sandbox.address is None
        async with sandbox.policy_lock:
            try:
                if not afresh:
                    await self.parts.launcher.resume(name)
                else:
                    await self._park(sandbox)
                    _require(sandbox, State.RESUMING)
                    await self._boot(sandbox)
                _require(sandbox, State.RESUMING)
                self._write(sandbox, State.RUNNING, None, end_at)
            except _ERRORS as error:
                _require(sandbox, State.RESUMING)
                await self._undo_resume(sandbox, afresh)
                raise _failed(f"sandbox {name} could not be resumed", error) from error
            sandbox.take(Event.CONTINUED)
            self.expiry.set(name, end_at.timestamp())
            await self._route(sandbox)
        sandbox.journal.add("Sandbox resumed", end_at=end_at.isoformat(), afresh=afresh)
        _log.info(
            "sandbox resumed id=%s afresh=%s ms=%.1f",
            name,
            afresh,
            (time.perf_counter() - began) * 1000,
        )

    async def _undo_resume(self, sandbox: LiveSandbox, afresh: bool) -> None:
        try:
            if afresh:
                await self._park(sandbox)
                self._write(sandbox, State.PAUSED, PAUSED_FILESYSTEM, sandbox.record.end_at)
            else:
                await self.parts.launcher.pause(sandbox.sandbox_id)
        except _ERRORS as error:
            _log.error("sandbox %s: %s", sandbox.sandbox_id, error)
        _require(sandbox, State.RESUMING)
        sandbox.take(Event.UNDONE)

    async def _park(self, sandbox: LiveSandbox) -> None:
        """End the processes; the disk stays. Harmless if they are gone."""
        # From here on the disk outlasts a power cut, so what is known of it has to, too.
        await self.parts.store.flush()
        await self.parts.launcher.park(sandbox.sandbox_id)
        address, sandbox.address = sandbox.address, None
        if address is not None:
            await tell(self.parts.egress.remove(address), "egress", sandbox.sandbox_id)

    async def _boot(self, sandbox: LiveSandbox) -> None:
        """Start processes on the disk that was kept."""
        spec = launch_spec(sandbox.record, sandbox.policy, kept=True)
        launched = await self.parts.launcher.create(spec, envd_config(sandbox.record))
        if sandbox.state in (State.KILLING, State.ENDED):
            raise SandboxEnding(sandbox.sandbox_id)
        sandbox.address = launched.address
        entry = sandbox.entry()
        assert entry is not None, "it has an address now"
        await self.parts.egress.set(entry)

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


def _failed(what: str, error: Exception) -> ChangeFailed:
    retryable = isinstance(error, LauncherError) and error.retryable
    return ChangeFailed(f"{what}: {error}", retryable=retryable)
