"""Ends sandboxes: once each, whoever asks, and for one reason."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from sandgate.node.errors import EndPending
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.registry import Registry
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import Event
from sandgate.node.teardown import Teardown

END_SECONDS = 10.0
"""Longest wait of a caller for the end of a sandbox."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ender:
    """Moves sandboxes to KILLING and, when nothing is left of them, out of the registry."""

    registry: Registry
    expiry: ExpiryQueue
    teardown: Teardown

    def begin(self, sandbox: LiveSandbox, event: Event) -> asyncio.Task[None]:
        """Begin the end, unless it has begun; the task is done when nothing is left."""
        if sandbox.ending is None:
            sandbox.take(event)
            sandbox.reason = event
            self.expiry.discard(sandbox.sandbox_id)
            sandbox.ending = self.registry.spawn(self._finish(sandbox))
        return sandbox.ending

    async def complete(self, sandbox: LiveSandbox, event: Event) -> None:
        """As :meth:`begin`, and wait for it. Raises EndPending after END_SECONDS."""
        done, _ = await asyncio.wait({self.begin(sandbox, event)}, timeout=END_SECONDS)
        if not done:
            raise EndPending(
                f"sandbox {sandbox.sandbox_id} is being ended, which takes longer than "
                f"{END_SECONDS:.0f} seconds"
            )

    async def _finish(self, sandbox: LiveSandbox) -> None:
        began = time.perf_counter()
        await self.teardown.run(sandbox)
        sandbox.take(Event.GONE)
        del self.registry.live[sandbox.sandbox_id]
        _log.info(
            "sandbox ended id=%s reason=%s ms=%.1f",
            sandbox.sandbox_id,
            sandbox.reason,
            (time.perf_counter() - began) * 1000,
        )
