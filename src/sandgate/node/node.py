"""The sandboxes of one node and what can be done with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

from sandgate.egress.table import SandboxEntry
from sandgate.ingress.routes import Route
from sandgate.node.doorbell import Knock, KnockDenied
from sandgate.node.enforcement import Enforcer
from sandgate.node.errors import (
    AlreadyPaused,
    ChangeFailed,
    EndPending,
    InvalidRequest,
    LimitReached,
    NodeError,
    NotApplied,
    NotReady,
    SandboxEnding,
    SandboxNotFound,
    StartFailed,
)
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.observer import Observer
from sandgate.node.parts import Health, Parts
from sandgate.node.pausing import Pauser
from sandgate.node.plans import (
    check_mask,
    envd_config,
    fork_request,
    launch_spec,
    network_policy,
    new_record,
    start_error,
)
from sandgate.node.ports import GATE_ERRORS, EgressGate, IngressGate
from sandgate.node.sandbox import CreateRequest, LiveSandbox
from sandgate.node.snapshots import Snapshots
from sandgate.node.states import ALIVE, SETTLED, Event, State
from sandgate.node.teardown import Teardown
from sandgate.runtime.client import LauncherError
from sandgate.runtime.protocol import Launched
from sandgate.store import (
    PAUSED_FILESYSTEM,
    ListQuery,
    NetworkConfig,
    SandboxRecord,
    SnapshotRecord,
)

END_SECONDS = 10.0
"""Longest wait of a caller for the end of a sandbox."""
_WOKEN_SECONDS = 300
"""What a sandbox that a request resumes lives for at least."""
_RETRY_SECONDS = 1.0
"""Until a pause at the end of the time is tried again."""
_WITH_NETWORK = (State.CREATING, *ALIVE)

_log = logging.getLogger(__name__)


class Node:
    """Creates, changes and ends sandboxes. Belongs to one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._live: dict[str, LiveSandbox] = {}
        self._expiry = ExpiryQueue(self._expire)
        self._pauser = Pauser(parts, self._expiry, self._spawn, self._end)
        self._enforcer = Enforcer(parts.launcher, parts.egress)
        self._teardown = Teardown(parts.launcher, parts.egress, parts.ingress, parts.store)
        self._observer = Observer(parts.launcher, parts.store, lambda: self._live.values())
        self.snapshots = Snapshots(parts, self._spawn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._adopted = False
        self._exits_before_adoption: set[str] = set()

    # -- what users ask for ---------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> SandboxRecord:
        """Start a sandbox; when this returns it is usable and its policy is in force.

        Raises InvalidRequest, TemplateNotFound, LimitReached, NotReady or StartFailed; nothing of
        the sandbox is left then.
        """
        snapshot = self.snapshots.find(request.template)
        return await self._create(request, snapshot, lists_origin=True)

    async def _create(
        self, request: CreateRequest, snapshot: SnapshotRecord | None, *, lists_origin: bool
    ) -> SandboxRecord:
        began = time.perf_counter()
        sandbox = self._admit(request, snapshot)
        if not lists_origin:
            sandbox.record = replace(sandbox.record, origin=None)
        try:
            await self._launch(sandbox)
        except BaseException as error:
            await self._undo(sandbox)
            told = start_error(error, sandbox)
            if told is error:
                raise
            raise told from error
        record = sandbox.record
        _log.info(
            "sandbox created id=%s template=%s address=%s timeout=%s ms=%.1f",
            record.sandbox_id,
            record.template,
            sandbox.address,
            request.timeout,
            (time.perf_counter() - began) * 1000,
        )
        return record

    def template(self, reference: str) -> str:
        """The name of the template that a name or an alias means. Raises TemplateNotFound."""
        return self._parts.templates.resolve(reference)

    def get(self, sandbox_id: str) -> SandboxRecord:
        """What is known of a sandbox. Raises SandboxNotFound, NotReady."""
        return self.observe(sandbox_id).record

    def find(self, query: ListQuery) -> list[SandboxRecord]:
        """List sandboxes. Raises NotReady, StoreError."""
        self._require_adopted()
        if query.template is not None:
            query = replace(query, template=self._parts.templates.resolve(query.template))
        return self._parts.store.find(query)

    def observe(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is alive, to look at. Raises SandboxNotFound, NotReady."""
        self._require_adopted()
        sandbox = self._live.get(sandbox_id)
        if sandbox is None or sandbox.state not in ALIVE:
            raise SandboxNotFound(sandbox_id)
        return sandbox

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox; returns when nothing of it is left.

        Raises SandboxNotFound, NotReady, or EndPending if it takes longer than END_SECONDS.
        """
        self._require_adopted()
        sandbox = self._live.get(sandbox_id)
        if sandbox is None or sandbox.state is State.CREATING:
            raise SandboxNotFound(sandbox_id)
        await self._wait_for_end(sandbox, self._end(sandbox, Event.KILLED))
        if sandbox.reason is not Event.KILLED:
            # It was ending by itself, and to those who asked was gone already.
            raise SandboxNotFound(sandbox_id)

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let a sandbox end `seconds` from now (at once if not positive).

        Raises SandboxNotFound, InvalidRequest, NotReady, EndPending, StoreError.
        """
        sandbox = self._running(sandbox_id)
        if seconds <= 0:
            await self._end_of_time(sandbox)
            return
        self._set_end(sandbox, self._moment_in(seconds))

    async def extend(self, sandbox_id: str, seconds: int) -> SandboxRecord:
        """Let a sandbox live for `seconds` more at least; its time is never shortened.

        Raises SandboxNotFound, SandboxEnding, InvalidRequest, NotReady, StoreError.
        """
        self._present(sandbox_id)
        sandbox = self._running(sandbox_id)
        end_at = self._moment_in(seconds)
        if end_at > sandbox.record.end_at:
            self._set_end(sandbox, end_at)
        return sandbox.record

    async def pause(self, sandbox_id: str, *, memory: bool = True) -> None:
        """Stop a sandbox where it stands; when this returns it holds no processor any more.

        Without `memory` its processes end, and its file system is kept.
        Raises SandboxNotFound, AlreadyPaused, ChangeFailed, NotReady.
        """
        while True:
            sandbox = self.observe(sandbox_id)
            if sandbox.state in (State.PAUSING, State.PAUSED):
                raise AlreadyPaused(sandbox_id)
            if sandbox.state is State.RUNNING:
                break
            await sandbox.settle()
        try:
            await self._pauser.pause(sandbox, memory=memory)
        except SandboxEnding:
            raise SandboxNotFound(sandbox_id) from None

    async def connect(
        self, sandbox_id: str, seconds: int, *, memory: bool = True
    ) -> tuple[SandboxRecord, bool]:
        """Let a sandbox live for `seconds` more at least, and resume it if it is paused.

        Without `memory` one that is paused starts afresh on its file system.
        Returns also whether it was resumed by this call. Raises SandboxNotFound, SandboxEnding,
        InvalidRequest, ChangeFailed, NotReady, StoreError.
        """
        while True:
            sandbox = self._present(sandbox_id)
            if sandbox.state is State.PAUSED:
                break
            if sandbox.state in SETTLED:
                return await self.extend(sandbox_id, seconds), False
            await sandbox.settle()
        if seconds <= 0:
            raise InvalidRequest(f"timeout must be at least 1 second, not {seconds}")
        await self._pauser.resume(sandbox, self._moment_in(seconds), memory=memory)
        return sandbox.record, True

    async def snapshot(self, sandbox_id: str, name: str | None) -> SnapshotRecord:
        """Keep a sandbox's file system, to make others of.

        Raises SandboxNotFound, InvalidRequest, ChangeFailed, NotReady, StoreError.
        """
        return await self.snapshots.take(await self._settled(sandbox_id), name)

    def find_snapshots(
        self,
        *,
        sandbox_id: str | None,
        name: str | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[SnapshotRecord]:
        """List snapshots, newest first. Raises NotReady, StoreError."""
        self._require_adopted()
        return self._parts.store.snapshots(
            sandbox_id=sandbox_id, name=name, after=after, limit=limit
        )

    async def fork(
        self, sandbox_id: str, seconds: int, count: int
    ) -> list[SandboxRecord | NodeError]:
        """Start `count` sandboxes like this one on copies of its file system.

        Each succeeds or fails by itself. Raises SandboxNotFound, ChangeFailed, NotReady.
        """
        sandbox = await self._settled(sandbox_id)
        snapshot = await self.snapshots.copy(sandbox)
        request = fork_request(sandbox.record, seconds)
        try:
            made = await asyncio.gather(
                *(self._create(request, snapshot, lists_origin=False) for _ in range(count)),
                return_exceptions=True,
            )
        finally:
            await self.snapshots.drop(snapshot.snapshot_id)
        outcomes: list[SandboxRecord | NodeError] = []
        for outcome in made:
            if isinstance(outcome, BaseException) and not isinstance(outcome, NodeError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def _settled(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is not just being paused, resumed or copied."""
        while True:
            sandbox = self.observe(sandbox_id)
            if sandbox.state in (State.RUNNING, State.PAUSED):
                return sandbox
            await sandbox.settle()

    async def wake(self, knock: Knock) -> IPv4Address:
        """Resume a sandbox for a request that has come, if it is one that shall be.

        Returns its address. Raises KnockDenied, and what :meth:`connect` raises.
        """
        record = self._present(knock.sandbox_id).record
        if not record.lifecycle.auto_resume:
            raise SandboxNotFound(knock.sandbox_id)
        if not knock.may_enter(record.envd_token, time.time()):
            raise KnockDenied
        seconds = min(
            max(record.lifecycle.timeout, _WOKEN_SECONDS), self._parts.settings.max_timeout
        )
        while True:
            sandbox = self._present(knock.sandbox_id)
            if sandbox.state in (State.RUNNING, State.SNAPSHOTTING):
                assert sandbox.address is not None
                return sandbox.address
            await self.connect(knock.sandbox_id, seconds)

    async def update_network(
        self, sandbox_id: str, network: NetworkConfig, internet: bool | None
    ) -> None:
        """Replace a sandbox's egress policy by that of `network`, whose ingress part is ignored.

        When this returns the policy is in force. Calls for one sandbox take effect one after the
        other. Raises SandboxNotFound, SandboxEnding, InvalidRequest, NotReady, NotApplied.
        """
        sandbox = self._present(sandbox_id)
        policy = network_policy(network, internet)
        async with sandbox.policy_lock:  # no pause or resumption is under way then
            self._present(sandbox_id)
            merged = replace(
                sandbox.record.network, allow_out=network.allow_out, deny_out=network.deny_out
            )

            def commit() -> None:
                self._parts.store.set_network(sandbox_id, merged, internet)
                sandbox.record = replace(sandbox.record, network=merged, internet=internet)

            try:
                enforced = await self._enforcer.change(sandbox, policy, commit)
            finally:
                # Whatever happened: if it was ended meanwhile, that is the answer.
                self._present(sandbox_id)
            if not enforced:
                self._end(sandbox, Event.CLOSED)
                raise NotApplied(
                    f"neither the new nor the old network settings of sandbox {sandbox_id} could "
                    "be put in force, so it is being ended"
                )
        _note_network(sandbox)
        _log.info("sandbox network changed id=%s", sandbox_id)

    def health(self) -> Health:
        """What is up at this moment."""
        parts = self._parts
        components = {
            "launcher": parts.launcher.connected,
            "egress": parts.egress.connected,
            "ingress": parts.ingress.connected,
            "sandboxes": self._adopted,
        }
        return Health(all(components.values()), components, len(self._live))

    # -- start and stop -------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the other processes and take over the sandboxes that are alive.

        Raises LauncherError or StoreError.
        """
        self._spawn(self._expiry.run())
        await self._parts.launcher.start()
        await self._adopt()
        await asyncio.gather(_start(self._parts.egress), _start(self._parts.ingress))

    async def close(self) -> None:
        """Disconnect. Sandboxes stay, for the next start to take over."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._observer.save()
        parts = self._parts
        await asyncio.gather(parts.launcher.close(), parts.egress.close(), parts.ingress.close())

    async def _adopt(self) -> None:
        launched = {item.sandbox_id: item for item in await self._parts.launcher.running()}
        kept, _ = await self._parts.launcher.images()
        for record in self._parts.store.all():
            process = launched.get(record.sandbox_id)
            if process is None and record.sandbox_id in kept:
                mode = PAUSED_FILESYSTEM
                record = replace(record, state=State.PAUSED, pause_mode=mode)
                self._parts.store.set_state(record.sandbox_id, State.PAUSED, mode, record.end_at)
            elif process is None:
                self._parts.store.delete(record.sandbox_id)
                _log.info("sandbox ended id=%s reason=gone_at_start", record.sandbox_id)
                continue
            policy = network_policy(record.network, record.internet)
            address = None if process is None else process.address
            sandbox = LiveSandbox(record, policy, State(record.state), address)
            self._live[record.sandbox_id] = sandbox
        self._observer.restore(self._live)
        self._spawn(self._observer.run())
        self._adopted = True
        for sandbox_id in self._exits_before_adoption:
            await self.on_exit(sandbox_id)
        for sandbox in list(self._live.values()):
            if sandbox.state is State.RUNNING:
                self._expiry.set(sandbox.sandbox_id, sandbox.record.end_at.timestamp())
            if (process := launched.get(sandbox.sandbox_id)) is not None:
                await self._settle_process(sandbox, process)
            _log.info("sandbox adopted id=%s", sandbox.sandbox_id)
        await self._end_unknown({*launched, *kept})
        await self.snapshots.tidy()
        await self._push_policies()

    # -- what the other processes report --------------------------------------------------------

    async def on_exit(self, sandbox_id: str) -> None:
        """The launcher says that a sandbox's first process died."""
        if not self._adopted:
            self._exits_before_adoption.add(sandbox_id)
            return
        sandbox = self._live.get(sandbox_id)
        if sandbox is not None:
            self._end(sandbox, Event.EXITED)

    async def on_launcher_connect(self) -> None:
        """The launcher is back: find out who died meanwhile, and make the kernel's rules sure."""
        if not self._adopted:
            return
        before = [item for item in self._live.values() if item.state in ALIVE]
        there, _ = await self._parts.launcher.images()
        there |= {item.sandbox_id for item in await self._parts.launcher.running()}
        for sandbox in before:
            if sandbox.sandbox_id not in there and sandbox.state in ALIVE:
                self._end(sandbox, Event.EXITED)
        await self._end_unknown(there)
        await self._push_policies()

    async def entries(self) -> list[SandboxEntry]:
        """All that the egress gateway should know."""
        found = (item.entry() for item in self._live.values() if item.state in _WITH_NETWORK)
        return [entry for entry in found if entry is not None]

    def routes(self) -> list[Route]:
        """All that the ingress should know."""
        found = (item.route() for item in self._live.values() if item.state in _WITH_NETWORK)
        return [route for route in found if route is not None]

    # -- inside ---------------------------------------------------------------------------------

    def _admit(self, request: CreateRequest, snapshot: SnapshotRecord | None) -> LiveSandbox:
        """Everything that can be refused is refused here, before anything is touched."""
        parts, settings = self._parts, self._parts.settings
        self._require_adopted()
        if request.timeout <= 0:
            raise InvalidRequest(f"timeout must be at least 1 second, not {request.timeout}")
        end_at = self._moment_in(request.timeout)
        policy = network_policy(request.network, request.internet)
        check_mask(request.network)
        template = snapshot.template if snapshot else parts.templates.resolve(request.template)
        down = [name for name, up in self.health().components.items() if not up]
        if down:
            raise NotReady(f"the node is not ready: waiting for {', '.join(down)}")
        if len(self._live) >= settings.max_sandboxes:
            raise LimitReached(
                f"this node's limit of {settings.max_sandboxes} sandboxes (max_sandboxes) is "
                "reached; end some, or raise the limit"
            )
        record = new_record(request, settings, template, end_at, snapshot)
        image = None if snapshot is None else snapshot.snapshot_id
        sandbox = LiveSandbox(record, policy, image=image)
        self._live[record.sandbox_id] = sandbox
        return sandbox

    async def _launch(self, sandbox: LiveSandbox) -> None:
        record, parts = sandbox.record, self._parts
        if sandbox.image is not None:
            await parts.launcher.clone(sandbox.image, record.sandbox_id)
            _require_creating(sandbox)
        spec = launch_spec(record, sandbox.policy, kept=sandbox.image is not None)
        launched = await parts.launcher.create(spec, envd_config(record))
        _require_creating(sandbox)
        sandbox.address = launched.address
        entry, route = sandbox.entry(), sandbox.route()
        assert entry is not None and route is not None, "it has an address now"
        await parts.egress.set(entry)
        _require_creating(sandbox)
        await parts.ingress.add(route)
        _require_creating(sandbox)
        parts.store.insert(record)
        sandbox.take(Event.STARTED)
        _note_network(sandbox)
        self._expiry.set(record.sandbox_id, record.end_at.timestamp())

    async def _undo(self, sandbox: LiveSandbox) -> None:
        """Take down what failed to start."""
        try:
            await self._wait_for_end(sandbox, self._end(sandbox, Event.FAILED))
        except EndPending:
            _log.warning("sandbox %s failed to start and is not gone yet", sandbox.sandbox_id)

    def _end(self, sandbox: LiveSandbox, event: Event) -> asyncio.Task[None]:
        """Begin the end, unless it has begun; the task is done when nothing is left."""
        if sandbox.ending is None:
            sandbox.take(event)
            sandbox.reason = event
            self._expiry.discard(sandbox.sandbox_id)
            sandbox.ending = self._spawn(self._finish(sandbox))
        return sandbox.ending

    async def _finish(self, sandbox: LiveSandbox) -> None:
        began = time.perf_counter()
        await self._teardown.run(sandbox)
        sandbox.take(Event.GONE)
        del self._live[sandbox.sandbox_id]
        _log.info(
            "sandbox ended id=%s reason=%s ms=%.1f",
            sandbox.sandbox_id,
            sandbox.reason,
            (time.perf_counter() - began) * 1000,
        )

    async def _wait_for_end(self, sandbox: LiveSandbox, ending: asyncio.Task[None]) -> None:
        done, _ = await asyncio.wait({ending}, timeout=END_SECONDS)
        if not done:
            raise EndPending(
                f"sandbox {sandbox.sandbox_id} is being ended, which takes longer than "
                f"{END_SECONDS:.0f} seconds"
            )

    async def _end_unknown(self, launched: Iterable[str]) -> None:
        for sandbox_id in launched:
            if sandbox_id not in self._live:
                _log.warning("ending sandbox %s, which is not in the store", sandbox_id)
                try:
                    await self._parts.launcher.kill(sandbox_id)
                except LauncherError as error:
                    # Tried again when the launcher is connected to the next time.
                    _log.error("sandbox %s is not gone: %s", sandbox_id, error)

    async def _push_policies(self) -> None:
        for sandbox in list(self._live.values()):
            async with sandbox.policy_lock:
                if sandbox.state in SETTLED and sandbox.address is not None:
                    await self._push_policy(sandbox)

    async def _push_policy(self, sandbox: LiveSandbox) -> None:
        try:
            await self._parts.launcher.set_policy(sandbox.sandbox_id, sandbox.policy)
        except LauncherError as error:
            _log.error("sandbox %s: policy not in force: %s", sandbox.sandbox_id, error)
            # If the launcher is away, all policies are pushed when it is back.
            if not error.retryable and sandbox.state in SETTLED:
                self._end(sandbox, Event.CLOSED)

    def _set_end(self, sandbox: LiveSandbox, end_at: datetime) -> None:
        self._parts.store.set_end(sandbox.sandbox_id, end_at)
        sandbox.record = replace(sandbox.record, end_at=end_at)
        sandbox.journal.add("End of the sandbox's time changed", end_at=end_at.isoformat())
        self._expiry.set(sandbox.sandbox_id, end_at.timestamp())

    def _expire(self, sandbox_id: str) -> None:
        sandbox = self._live[sandbox_id]
        if sandbox.record.lifecycle.auto_pause:
            self._spawn(self._end_of_time(sandbox))
        else:
            self._end(sandbox, Event.EXPIRED)

    async def _end_of_time(self, sandbox: LiveSandbox) -> None:
        """End a sandbox, or pause it, as its creator wanted it."""
        if not sandbox.record.lifecycle.auto_pause:
            await self._wait_for_end(sandbox, self._end(sandbox, Event.EXPIRED))
            return
        try:
            lifecycle = sandbox.record.lifecycle
            await self.pause(sandbox.sandbox_id, memory=lifecycle.auto_pause_memory)
        except (SandboxNotFound, AlreadyPaused):
            return
        except ChangeFailed as error:
            if error.retryable:
                self._expiry.set(sandbox.sandbox_id, time.time() + _RETRY_SECONDS)
            elif sandbox.state in ALIVE:
                _log.error("sandbox %s is ended instead: %s", sandbox.sandbox_id, error)
                self._end(sandbox, Event.EXPIRED)

    async def _settle_process(self, sandbox: LiveSandbox, process: Launched) -> None:
        """Make an adopted sandbox's processes do what the store says."""
        paused = sandbox.state is State.PAUSED
        launcher = self._parts.launcher
        try:
            if sandbox.record.pause_mode == PAUSED_FILESYSTEM:
                await launcher.park(sandbox.sandbox_id)
                sandbox.address = None
            elif process.paused is not paused:
                await (launcher.pause if paused else launcher.resume)(sandbox.sandbox_id)
        except LauncherError as error:
            _log.error("sandbox %s: %s", sandbox.sandbox_id, error)

    def _moment_in(self, seconds: int) -> datetime:
        longest = self._parts.settings.max_timeout
        if seconds > longest:
            raise InvalidRequest(
                f"timeout {seconds} is longer than this node allows; ask for at most {longest} "
                "seconds (max_timeout)"
            )
        return datetime.now(UTC) + timedelta(seconds=seconds)

    def _running(self, sandbox_id: str) -> LiveSandbox:
        self._require_adopted()
        sandbox = self._live.get(sandbox_id)
        if sandbox is None or sandbox.state not in (State.RUNNING, State.SNAPSHOTTING):
            raise SandboxNotFound(sandbox_id)
        return sandbox

    def _present(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is alive, paused or not."""
        sandbox = self._live.get(sandbox_id)
        if sandbox is not None and sandbox.state is State.KILLING:
            raise SandboxEnding(sandbox_id)
        return self.observe(sandbox_id)

    def _require_adopted(self) -> None:
        if not self._adopted:
            raise NotReady("the node is starting: its sandboxes are being taken over")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A NodeError is told to whoever asked for the work.
        if not isinstance(error, NodeError):
            _log.error("background work failed: %s", error, exc_info=error)


def _note_network(sandbox: LiveSandbox) -> None:
    network, internet = sandbox.record.network, sandbox.record.internet
    sandbox.journal.add(
        "Network policy in force",
        allow_out=None if network.allow_out is None else " ".join(network.allow_out),
        deny_out=None if network.deny_out is None else " ".join(network.deny_out),
        allow_internet_access=internet,
    )


def _require_creating(sandbox: LiveSandbox) -> None:
    """Asked before a gate is told: told after the end began, it would never be told to forget."""
    if sandbox.state is not State.CREATING:
        raise StartFailed("its first process died")


async def _start(gate: EgressGate | IngressGate) -> None:
    while True:
        try:
            await gate.start()
        except GATE_ERRORS as error:
            _log.warning("%s", error)
        else:
            return
