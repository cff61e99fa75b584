"""Takes a sandbox down, whatever the state of the processes that have to help."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from sandgate.node.gates import tell
from sandgate.node.ports import EgressGate, IngressGate, Launcher
from sandgate.node.sandbox import LiveSandbox
from sandgate.runtime.client import LauncherError
from sandgate.store import Store, StoreError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Teardown:
    """Ends sandboxes. No step's failure keeps the others from being taken."""

    launcher: Launcher
    egress: EgressGate
    ingress: IngressGate
    store: Store

    async def run(self, sandbox: LiveSandbox) -> None:
        """Returns when nothing is left. A launcher that is away is waited for.

        The row goes first, so that a crash in between cannot bring the sandbox back: at the next
        start a process without a row is ended. The gateway's entry goes while the process is
        ended and not after, when the address may belong to another sandbox; without an entry
        the gateway lets nothing pass.
        """
        self._forget(sandbox.sandbox_id)
        await tell(self.ingress.remove(sandbox.sandbox_id), "ingress", sandbox.sandbox_id)
        kill = self._kill(sandbox.sandbox_id)
        if sandbox.address is None:
            await kill
        else:
            leave = tell(self.egress.remove(sandbox.address), "egress", sandbox.sandbox_id)
            await asyncio.gather(kill, leave)

    def _forget(self, sandbox_id: str) -> None:
        try:
            self.store.delete(sandbox_id)
        except StoreError as error:
            # At the next start the row has no process, and goes then.
            _log.error("sandbox %s: %s", sandbox_id, error)

    async def _kill(self, sandbox_id: str) -> None:
        pause = _FIRST_PAUSE
        while True:
            try:
                await self.launcher.kill(sandbox_id)
            except LauncherError as error:
                _log.warning("sandbox %s is not gone yet: %s", sandbox_id, error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                return
