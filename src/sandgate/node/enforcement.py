"""Puts a policy in force in the kernel and in the gateway, both or neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from sandgate.node.errors import NotApplied
from sandgate.node.ports import GATE_ERRORS, EgressGate, Launcher
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import SETTLED
from sandgate.policy import EgressPolicy
from sandgate.runtime.client import LauncherError
from sandgate.store import SandboxRecord, Store, StoreError

RESTORE_SECONDS = 10.0
"""How long the old policy is tried to be restored before the sandbox is ended instead."""
_RETRY_SECONDS = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Enforcer:
    """Changes policies. The caller holds the sandbox's `policy_lock`."""

    launcher: Launcher
    egress: EgressGate
    store: Store

    async def change(
        self, sandbox: LiveSandbox, record: SandboxRecord, policy: EgressPolicy
    ) -> bool:
        """Put `policy`, that of the network settings of `record`, in force, and keep both.

        Kernel and gateway are told at the same time. Whichever is first: to every connection, and
        to every query, only one of the two applies its policy, so that what comes in between is
        judged by the old policy or by the new one as a whole. The kernel decides who it is; the
        gateway, which knows addresses as well, decides on whatever it is handed. Once each has
        changed it has judged again what it had let pass before.

        The store is told meanwhile. If this process dies now, the next one puts what is in the
        store in force, the new policy perhaps: nobody was told yet which one holds.

        If any step fails the old policy is restored. Raises :class:`NotApplied` or StoreError
        then; returns False if that was impossible and the sandbox has to be ended, True if all
        went well.
        """
        old, before = sandbox.policy, sandbox.record
        kept = False

        def keep() -> None:
            nonlocal kept
            self._keep(record)
            kept = True

        # From here on a gateway that reconnects is given the new policy.
        sandbox.policy = policy
        try:
            await self._apply(sandbox, keep)
        except BaseException as error:
            sandbox.policy = old
            undo = partial(self._keep, before) if kept else _nothing
            if not await asyncio.shield(self._restore(sandbox, undo)):
                return False
            if isinstance(error, (LauncherError, *GATE_ERRORS)):
                raise NotApplied(
                    f"the network settings of sandbox {sandbox.sandbox_id} could not be changed, "
                    f"the old ones hold: {error}"
                ) from error
            raise
        sandbox.keep_network(record)
        return True

    async def _apply(self, sandbox: LiveSandbox, meanwhile: Callable[[], None]) -> None:
        telling = [asyncio.create_task(call) for call in self._calls(sandbox)]
        try:
            await asyncio.sleep(0)  # the calls begin, and are under way while `meanwhile` runs
            meanwhile()
            await asyncio.gather(*telling)
        except BaseException:
            # None may come later than the old policy, which is sent next.
            for task in telling:
                task.cancel()
            await asyncio.gather(*telling, return_exceptions=True)
            raise

    def _calls(self, sandbox: LiveSandbox) -> list[Coroutine[Any, Any, None]]:
        entry = sandbox.entry()
        if entry is None:
            return []  # paused without processes: the policy is put in force when it starts again
        calls = [self.launcher.set_policy(sandbox.sandbox_id, sandbox.policy)]
        # Told after the end began, the gateway would never be told to forget.
        if sandbox.state in SETTLED:
            calls.append(self.egress.set(entry))
        return calls

    def _keep(self, record: SandboxRecord) -> None:
        self.store.set_network(record.sandbox_id, record.network, record.internet)

    async def _restore(self, sandbox: LiveSandbox, undo: Callable[[], None]) -> bool:
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                while sandbox.state in SETTLED:
                    try:
                        await self._apply(sandbox, undo)
                    except (LauncherError, StoreError, *GATE_ERRORS) as error:
                        _log.warning("sandbox %s: not restored: %s", sandbox.sandbox_id, error)
                        await asyncio.sleep(_RETRY_SECONDS)
                    else:
                        return True
        except TimeoutError:
            return False
        return True


def _nothing() -> None:
    """The store has what it had."""
