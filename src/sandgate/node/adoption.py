"""Makes the node agree with the launcher: when the node starts, and when the launcher is back."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sandgate.node.ending import Ender
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.observer import Observer
from sandgate.node.parts import Parts
from sandgate.node.plans import network_policy
from sandgate.node.registry import Lost, Registry
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.snapshots import Snapshots
from sandgate.node.states import ALIVE, SETTLED, Event, State
from sandgate.runtime.client import LauncherError
from sandgate.runtime.protocol import Launched
from sandgate.store import PAUSED_FILESYSTEM, PAUSED_FULL, NoteKind, SandboxRecord

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BOOT = "boot"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adoption:
    """Takes over the sandboxes that are alive, and hears from the launcher who died."""

    parts: Parts
    registry: Registry
    expiry: ExpiryQueue
    ender: Ender
    observer: Observer
    snapshots: Snapshots
    _exits_before: set[str] = field(default_factory=set, init=False)
    """Who died before the sandboxes were known."""

    async def run(self) -> set[str]:
        """Take over what an earlier process left; the names of all that there is, for
        :meth:`confirm`. Raises LauncherError, StoreError."""
        launched = {item.sandbox_id: item for item in await self.parts.launcher.running()}
        kept, _ = await self.parts.launcher.images()
        self._restore(launched, kept)
        self.observer.restore(self.registry.live)
        self.registry.spawn(self.observer.run())
        self.registry.adopted = True
        for sandbox_id in self._exits_before:
            self.exited(sandbox_id)
        for sandbox in list(self.registry.live.values()):
            if sandbox.state is State.RUNNING:
                self.expiry.set(sandbox.sandbox_id, sandbox.record.end_at.timestamp())
            if (process := launched.get(sandbox.sandbox_id)) is not None:
                await self._settle_process(sandbox, process)
            _log.info("sandbox adopted id=%s", sandbox.sandbox_id)
        return {*launched, *kept}

    async def confirm(self, there: Iterable[str]) -> None:
        """End what nobody knows, and make the kernel's rules sure.

        Waits for changes of sandboxes that are under way. Raises LauncherError, StoreError.
        """
        await self._end_unknown(there)
        await self.snapshots.tidy()
        await self._push_policies()

    def exited(self, sandbox_id: str) -> None:
        """The launcher says that a sandbox's first process died."""
        if not self.registry.adopted:
            self._exits_before.add(sandbox_id)
            return
        sandbox = self.registry.live.get(sandbox_id)
        if sandbox is not None:
            self.ender.begin(sandbox, Event.EXITED)

    async def launcher_back(self) -> None:
        """Find out who died meanwhile, and make the kernel's rules sure. Raises LauncherError."""
        if not self.registry.adopted:
            return
        before = [item for item in self.registry.live.values() if item.state in ALIVE]
        there, _ = await self.parts.launcher.images()
        there |= {item.sandbox_id for item in await self.parts.launcher.running()}
        for sandbox in before:
            if sandbox.sandbox_id not in there and sandbox.state in ALIVE:
                self.ender.begin(sandbox, Event.EXITED)
        await self._end_unknown(there)
        await self._push_policies()

    def _restore(self, launched: dict[str, Launched], kept: set[str]) -> None:
        """Fill the registry from the store, as far as there is something behind a row."""
        store = self.parts.store
        booted = self._machine_was_restarted()
        for record in store.all():
            process = launched.get(record.sandbox_id)
            if process is None and record.sandbox_id in kept:
                mode = PAUSED_FILESYSTEM
                record = replace(record, state=State.PAUSED, pause_mode=mode)
                store.set_state(record.sandbox_id, State.PAUSED, mode, record.end_at)
            elif process is None:
                why = _why_gone(record, booted=booted)
                self.registry.lost[record.sandbox_id] = Lost(record.owner, why)
                store.delete(record.sandbox_id)
                _log.info("sandbox ended id=%s reason=%r", record.sandbox_id, why)
                continue
            policy = network_policy(record.network, record.internet)
            address = None if process is None else process.address
            sandbox = LiveSandbox(record, policy, State(record.state), address)
            self.registry.live[record.sandbox_id] = sandbox

    def _machine_was_restarted(self) -> bool:
        """Whether this is the first start since the machine's. Raises StoreError."""
        store, now = self.parts.store, _BOOT_ID.read_bytes().strip()
        before = store.notes(NoteKind.MACHINE).get(_BOOT)
        if before is None or before.data != now:
            store.write_notes(NoteKind.MACHINE, {_BOOT: now})
        return before is not None and before.data != now

    async def _settle_process(self, sandbox: LiveSandbox, process: Launched) -> None:
        """Make an adopted sandbox's processes do what the store says."""
        paused = sandbox.state is State.PAUSED
        launcher = self.parts.launcher
        try:
            if sandbox.record.pause_mode == PAUSED_FILESYSTEM:
                await launcher.park(sandbox.sandbox_id)
                sandbox.address = None
            elif process.paused is not paused:
                await (launcher.pause if paused else launcher.resume)(sandbox.sandbox_id)
        except LauncherError as error:
            _log.error("sandbox %s: %s", sandbox.sandbox_id, error)

    async def _end_unknown(self, there: Iterable[str]) -> None:
        for sandbox_id in there:
            if sandbox_id not in self.registry.live:
                _log.warning("ending sandbox %s, which is not in the store", sandbox_id)
                try:
                    await self.parts.launcher.kill(sandbox_id)
                except LauncherError as error:
                    # Tried again when the launcher is connected to the next time.
                    _log.error("sandbox %s is not gone: %s", sandbox_id, error)

    async def _push_policies(self) -> None:
        for sandbox in list(self.registry.live.values()):
            async with sandbox.policy_lock:
                if sandbox.state in SETTLED and sandbox.address is not None:
                    await self._push_policy(sandbox)

    async def _push_policy(self, sandbox: LiveSandbox) -> None:
        try:
            await self.parts.launcher.set_policy(sandbox.sandbox_id, sandbox.policy)
        except LauncherError as error:
            _log.error("sandbox %s: policy not in force: %s", sandbox.sandbox_id, error)
            # If the launcher is away, all policies are pushed when it is back.
            if not error.retryable and sandbox.state in SETTLED:
                self.ender.begin(sandbox, Event.CLOSED)


def _why_gone(record: SandboxRecord, *, booted: bool) -> str:
    if not booted:
        return "its processes ended while the node was down"
    if record.pause_mode == PAUSED_FULL:
        return "the machine was restarted, which a pause that keeps memory does not outlast"
    return "the machine was restarted"
