"""Puts a policy in force in the kernel and in the gateway, both or neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from sandgate.node.errors import NotApplied
from sandgate.node.ports import GATE_ERRORS, EgressGate, Launcher
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import SETTLED
from sandgate.policy import EgressPolicy
from sandgate.runtime.client import LauncherError

RESTORE_SECONDS = 10.0
"""How long the old policy is tried to be restored before the sandbox is ended instead."""
_RETRY_SECONDS = 0.25

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Enforcer:
    """Changes policies. The caller holds the sandbox's `policy_lock`."""

    launcher: Launcher
    egress: EgressGate

    async def change(
        self, sandbox: LiveSandbox, policy: EgressPolicy, commit: Callable[[], None]
    ) -> bool:
        """Put `policy` in force, then `commit` it to the store.

        Kernel first: it stops what is newly denied by address, and hands names to the gateway
        before the gateway has new ones to admit. Whatever arrives between the two steps is judged
        by the old policy or by the new one as a whole, since for every connection just one of the
        two decides. The gateway, which comes last, re-judges what is open.

        If any step fails the old policy is restored. Raises :class:`NotApplied` then; returns
        False if that was impossible and the sandbox has to be ended, True if all went well.
        """
        old = sandbox.policy
        # From here on a gateway that reconnects is given the new policy.
        sandbox.policy = policy
        try:
            await self._apply(sandbox)
            commit()
        except BaseException as error:
            sandbox.policy = old
            restored = await asyncio.shield(self._restore(sandbox))
            if not restored:
                return False
            if isinstance(error, (LauncherError, *GATE_ERRORS)):
                raise NotApplied(
                    f"the network settings of sandbox {sandbox.sandbox_id} could not be changed, "
                    f"the old ones hold: {error}"
                ) from error
            raise
        return True

    async def _apply(self, sandbox: LiveSandbox) -> None:
        entry = sandbox.entry()
        if entry is None:
            return  # paused without processes: the policy is put in force when it starts again
        await self.launcher.set_policy(sandbox.sandbox_id, sandbox.policy)
        # Told after the end began, the gateway would never be told to forget.
        if sandbox.state in SETTLED:
            await self.egress.set(entry)

    async def _restore(self, sandbox: LiveSandbox) -> bool:
        try:
            async with asyncio.timeout(RESTORE_SECONDS):
                while sandbox.state in SETTLED:
                    try:
                        await self._apply(sandbox)
                    except (LauncherError, *GATE_ERRORS) as error:
                        _log.warning("sandbox %s: not restored: %s", sandbox.sandbox_id, error)
                        await asyncio.sleep(_RETRY_SECONDS)
                    else:
                        return True
        except TimeoutError:
            return False
        return True
