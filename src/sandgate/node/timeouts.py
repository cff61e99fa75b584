"""How long sandboxes live, and what happens when their time is over."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime

from sandgate.node.ending import Ender
from sandgate.node.errors import AlreadyPaused, ChangeFailed, SandboxNotFound
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.parts import Parts
from sandgate.node.pausing import Pauser
from sandgate.node.plans import moment_in
from sandgate.node.registry import Registry
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import ALIVE, Event
from sandgate.store import SandboxRecord

_RETRY_SECONDS = 1.0
"""Until a pause at the end of the time is tried again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Sets the ends of sandboxes' times, and ends or pauses them then."""

    parts: Parts
    registry: Registry
    expiry: ExpiryQueue
    ender: Ender
    pauser: Pauser

    async def set(self, sandbox_id: str, seconds: int) -> None:
        """Let a sandbox end `seconds` from now (at once if not positive).

        Raises SandboxNotFound, InvalidRequest, NotReady, EndPending, StoreError.
        """
        sandbox = self.registry.running(sandbox_id)
        if seconds <= 0:
            await self._end_of_time(sandbox)
            return
        self._set_end(sandbox, moment_in(seconds, self.parts.settings))

    def extend(self, sandbox_id: str, seconds: int) -> SandboxRecord:
        """Let a sandbox live for `seconds` more at least; its time is never shortened.

        Raises SandboxNotFound, SandboxEnding, InvalidRequest, NotReady, StoreError.
        """
        self.registry.present(sandbox_id)
        sandbox = self.registry.running(sandbox_id)
        end_at = moment_in(seconds, self.parts.settings)
        if end_at > sandbox.record.end_at:
            self._set_end(sandbox, end_at)
        return sandbox.record

    def expired(self, sandbox_id: str) -> None:
        """The time of a sandbox is over."""
        sandbox = self.registry.live[sandbox_id]
        if sandbox.record.lifecycle.auto_pause:
            self.registry.spawn(self._end_of_time(sandbox))
        else:
            self.ender.begin(sandbox, Event.EXPIRED)

    def _set_end(self, sandbox: LiveSandbox, end_at: datetime) -> None:
        self.parts.store.set_end(sandbox.sandbox_id, end_at)
        sandbox.record = replace(sandbox.record, end_at=end_at)
        sandbox.journal.add("End of the sandbox's time changed", end_at=end_at.isoformat())
        self.expiry.set(sandbox.sandbox_id, end_at.timestamp())

    async def _end_of_time(self, sandbox: LiveSandbox) -> None:
        """End a sandbox, or pause it, as its creator wanted it."""
        lifecycle = sandbox.record.lifecycle
        if not lifecycle.auto_pause:
            await self.ender.complete(sandbox, Event.EXPIRED)
            return
        try:
            await self.pauser.pause(sandbox.sandbox_id, memory=lifecycle.auto_pause_memory)
        except (SandboxNotFound, AlreadyPaused):
            return
        except ChangeFailed as error:
            if error.retryable:
                self.expiry.set(sandbox.sandbox_id, time.time() + _RETRY_SECONDS)
            elif sandbox.state in ALIVE:
                _log.error("sandbox %s is ended instead: %s", sandbox.sandbox_id, error)
                self.ender.begin(sandbox, Event.EXPIRED)
