"""The sandboxes of one node and what can be done with them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address
from typing import Any

from sandgate.accounts import Caller
from sandgate.egress.client import EgressRefused, EgressUnavailable
from sandgate.egress.table import SandboxEntry
from sandgate.ingress.routes import Route
from sandgate.node.admittance import Admittance
from sandgate.node.adoption import Adoption
from sandgate.node.doorbell import Knock, KnockDenied
from sandgate.node.ending import Ender
from sandgate.node.enforcement import Enforcer
from sandgate.node.errors import InvalidRequest, NodeError, NotApplied, NotReady, SandboxNotFound
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.observer import Observer
from sandgate.node.parts import Health, Parts
from sandgate.node.pausing import Pauser
from sandgate.node.plans import fork_request, moment_in, network_policy
from sandgate.node.ports import GATE_ERRORS, EgressGate, IngressGate
from sandgate.node.registry import Registry
from sandgate.node.sandbox import CreateRequest, LiveSandbox
from sandgate.node.snapshots import Snapshots
from sandgate.node.starting import Starter
from sandgate.node.states import ALIVE, SETTLED, Event, State
from sandgate.node.teardown import Teardown
from sandgate.node.timeouts import Timeouts
from sandgate.policy import Mode
from sandgate.store import ListQuery, NetworkConfig, SandboxRecord, SnapshotRecord

_WOKEN_SECONDS = 300
"""What a sandbox that a request resumes lives for at least."""
_WITH_NETWORK = (State.CREATING, *ALIVE)

_log = logging.getLogger(__name__)


class Node:
    """Creates, changes and ends sandboxes. Belongs to one event loop."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._registry = registry = Registry()
        # Late binding: what happens when a time is over may set the next, or discard it.
        self._expiry = expiry = ExpiryQueue(lambda name: self._timeouts.expired(name))
        teardown = Teardown(parts.launcher, parts.egress, parts.ingress, parts.store)
        self._ender = Ender(registry, expiry, teardown)
        self._admittance = Admittance(parts.settings, registry, parts.gauge)
        self._starter = Starter(parts, registry, expiry, self._ender, self._admittance)
        self._pauser = Pauser(parts, registry, expiry, self._ender)
        self._timeouts = Timeouts(parts, registry, expiry, self._ender, self._pauser)
        self._enforcer = Enforcer(parts.launcher, parts.egress, parts.store)
        self._observer = Observer(parts.launcher, parts.store, registry.live.values)
        self.snapshots = Snapshots(parts, registry.spawn)
        self._adoption = Adoption(
            parts, registry, expiry, self._ender, self._observer, self.snapshots
        )

    # -- what users ask for ---------------------------------------------------------------------

    async def create(self, request: CreateRequest) -> SandboxRecord:
        """Start a sandbox; when this returns it is usable and its policy is in force.

        Raises InvalidRequest, TemplateNotFound, LimitReached, NoSpace, NotReady or StartFailed;
        nothing of the sandbox is left then.
        """
        snapshot = self.snapshots.find(request.template, request.caller.owner)
        return await self._starter.start(request, snapshot, lists_origin=True)

    def template(self, reference: str) -> str:
        """The name of the template that a name or an alias means. Raises TemplateNotFound."""
        return self._parts.templates.resolve(reference)

    def owner_of(self, sandbox_id: str) -> str | None:
        """Whose sandbox it is; None if there is none."""
        sandbox = self._registry.live.get(sandbox_id)
        return None if sandbox is None else sandbox.record.owner

    def require_owner(self, sandbox_id: str, owner: str) -> None:
        """Raises SandboxNotFound unless there is such a sandbox of `owner`'s, and NotReady."""
        self._registry.require_adopted()
        sandbox = self._registry.live.get(sandbox_id)
        if sandbox is None or sandbox.record.owner != owner:
            lost = self._registry.lost.get(sandbox_id)
            raise SandboxNotFound(sandbox_id, lost.why if lost and lost.owner == owner else None)

    def get(self, sandbox_id: str) -> SandboxRecord:
        """What is known of a sandbox. Raises SandboxNotFound, NotReady."""
        return self.observe(sandbox_id).record

    def find(self, query: ListQuery) -> list[SandboxRecord]:
        """List sandboxes. Raises NotReady, StoreError."""
        self._registry.require_adopted()
        if query.template is not None:
            query = replace(query, template=self._parts.templates.resolve(query.template))
        return self._parts.store.find(query)

    def observe(self, sandbox_id: str) -> LiveSandbox:
        """A sandbox that is alive, to look at. Raises SandboxNotFound, NotReady."""
        return self._registry.observe(sandbox_id)

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox; returns when nothing of it is left.

        Raises SandboxNotFound, NotReady, or EndPending if it takes longer than
        :data:`sandgate.node.ending.END_SECONDS`.
        """
        self._registry.require_adopted()
        sandbox = self._registry.live.get(sandbox_id)
        if sandbox is None or sandbox.state is State.CREATING:
            raise SandboxNotFound(sandbox_id)
        await self._ender.complete(sandbox, Event.KILLED)
        if sandbox.reason is not Event.KILLED:
            # It was ending by itself, and to those who asked was gone already.
            raise SandboxNotFound(sandbox_id)

    async def set_timeout(self, sandbox_id: str, seconds: int) -> None:
        """Let a sandbox end `seconds` from now (at once if not positive).

        Raises SandboxNotFound, InvalidRequest, NotReady, EndPending, StoreError.
        """
        await self._timeouts.set(sandbox_id, seconds)

    async def extend(self, sandbox_id: str, seconds: int) -> SandboxRecord:
        """Let a sandbox live for `seconds` more at least; its time is never shortened.

        Raises SandboxNotFound, SandboxEnding, InvalidRequest, NotReady, StoreError.
        """
        return self._timeouts.extend(sandbox_id, seconds)

    async def pause(self, sandbox_id: str, *, memory: bool = True) -> None:
        """Stop a sandbox where it stands; when this returns it holds no processor any more.

        Without `memory` its processes end, and its file system is kept.
        Raises SandboxNotFound, AlreadyPaused, ChangeFailed, NotReady.
        """
        await self._pauser.pause(sandbox_id, memory=memory)

    async def connect(
        self, sandbox_id: str, seconds: int, *, memory: bool = True
    ) -> tuple[SandboxRecord, bool]:
        """Let a sandbox live for `seconds` more at least, and resume it if it is paused.

        Without `memory` one that is paused starts afresh on its file system.
        Returns also whether it was resumed by this call. Raises SandboxNotFound, SandboxEnding,
        InvalidRequest, ChangeFailed, NotReady, StoreError.
        """
        while True:
            sandbox = self._registry.present(sandbox_id)
            if sandbox.state is State.PAUSED:
                break
            if sandbox.state in SETTLED:
                return self._timeouts.extend(sandbox_id, seconds), False
            await sandbox.settle()
        if seconds <= 0:
            raise InvalidRequest(f"timeout must be at least 1 second, not {seconds}")
        end_at = moment_in(seconds, self._parts.settings)
        await self._pauser.resume(sandbox, end_at, memory=memory)
        return sandbox.record, True

    async def snapshot(self, sandbox_id: str, name: str | None) -> SnapshotRecord:
        """Keep a sandbox's file system, to make others of.

        Raises SandboxNotFound, InvalidRequest, LimitReached, NoSpace, ChangeFailed, NotReady,
        StoreError.
        """
        sandbox = await self._registry.settled(sandbox_id)
        self._require_room_to_copy(sandbox)
        return await self.snapshots.take(sandbox, name)

    def _require_room_to_copy(self, sandbox: LiveSandbox) -> None:
        """Raises LimitReached, NoSpace."""
        sample = sandbox.meter.history.last()
        self._admittance.require_room(0 if sample is None else sample.disk >> 20)

    def find_snapshots(
        self,
        *,
        owner: str,
        sandbox_id: str | None,
        name: str | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[SnapshotRecord]:
        """List snapshots, newest first. Raises NotReady, StoreError."""
        self._registry.require_adopted()
        return self._parts.store.snapshots(
            owner=owner, sandbox_id=sandbox_id, name=name, after=after, limit=limit
        )

    async def fork(
        self, sandbox_id: str, caller: Caller, seconds: int, count: int
    ) -> list[SandboxRecord | NodeError]:
        """Start `count` sandboxes of `caller`'s like this one on copies of its file system.

        Each succeeds or fails by itself. Raises SandboxNotFound, LimitReached, NoSpace,
        ChangeFailed, NotReady.
        """
        sandbox = await self._registry.settled(sandbox_id)
        self._require_room_to_copy(sandbox)
        snapshot = await self.snapshots.copy(sandbox)
        request = fork_request(sandbox.record, caller, seconds)
        try:
            made = await asyncio.gather(
                *(self._starter.start(request, snapshot, lists_origin=False) for _ in range(count)),
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

    async def wake(self, knock: Knock) -> IPv4Address:
        """Resume a sandbox for a request that has come, if it is one that shall be.

        Returns its address. Raises KnockDenied, and what :meth:`connect` raises.
        """
        record = self._registry.present(knock.sandbox_id).record
        if not record.lifecycle.auto_resume:
            raise SandboxNotFound(knock.sandbox_id)
        if not knock.may_enter(record.envd_token, time.time()):
            raise KnockDenied
        seconds = min(
            max(record.lifecycle.timeout, _WOKEN_SECONDS), self._parts.settings.max_timeout
        )
        while True:
            sandbox = self._registry.present(knock.sandbox_id)
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

        def replaced(record: SandboxRecord) -> SandboxRecord:
            merged = replace(
                record.network,
                allow_out=network.allow_out,
                deny_out=network.deny_out,
                dns_servers=network.dns_servers,
                mode=network.mode,
            )
            return replace(record, network=merged, internet=internet)

        await self._change_network(sandbox_id, replaced)

    async def set_network_mode(self, sandbox_id: str, mode: Mode) -> None:
        """Enforce a sandbox's egress policy, or only report what it does not allow.

        Otherwise as :meth:`update_network`.
        """

        def changed(record: SandboxRecord) -> SandboxRecord:
            return replace(record, network=replace(record.network, mode=mode.value))

        await self._change_network(sandbox_id, changed)

    async def explain_network(self, sandbox_id: str, target: str) -> dict[str, Any]:
        """What would become of a connection of a sandbox to `target` (`sandgate.egress.explain`).

        Raises SandboxNotFound, NotReady, or InvalidRequest for a target that is none.
        """
        policy = self._registry.present(sandbox_id).policy
        try:
            return await self._parts.egress.explain(policy, target)
        except EgressRefused as error:
            raise InvalidRequest(str(error)) from None
        except EgressUnavailable as error:
            raise NotReady(str(error)) from None

    async def _change_network(
        self, sandbox_id: str, change: Callable[[SandboxRecord], SandboxRecord]
    ) -> None:
        sandbox = self._registry.present(sandbox_id)
        # Refused before anything is waited for: no other change makes of it what is refused.
        record = change(sandbox.record)
        policy = network_policy(record.network, record.internet)
        async with sandbox.policy_lock:  # no pause or resumption is under way then
            self._registry.present(sandbox_id)
            if (latest := change(sandbox.record)) != record:
                record, policy = latest, network_policy(latest.network, latest.internet)
            try:
                enforced = await self._enforcer.change(sandbox, record, policy)
            finally:
                # Whatever happened: if it was ended meanwhile, that is the answer.
                self._registry.present(sandbox_id)
            if not enforced:
                self._ender.begin(sandbox, Event.CLOSED)
                raise NotApplied(
                    f"neither the new nor the old network settings of sandbox {sandbox_id} could "
                    "be put in force, so it is being ended"
                )
            if sandbox.address is None:
                await self._parts.store.flush()  # it outlasts a power cut, and so must this
        _log.info("sandbox network changed id=%s", sandbox_id)

    def states(self) -> Counter[str]:
        """How many sandboxes are in which state."""
        return Counter(str(sandbox.state) for sandbox in self._registry.live.values())

    def health(self) -> Health:
        """What is up at this moment."""
        components = {**self._parts.connected(), "sandboxes": self._registry.adopted}
        return Health(all(components.values()), components, len(self._registry.live))

    # -- start and stop -------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the other processes and take over the sandboxes that are alive.

        Raises LauncherError or StoreError.
        """
        self._registry.spawn(self._expiry.run())
        await self._parts.launcher.start()
        there = await self._adoption.run()
        # All at once: a change that was asked for meanwhile has its sandbox's policy lock, and may
        # wait for the gates.
        gates = (_start(self._parts.egress), _start(self._parts.ingress))
        await asyncio.gather(self._adoption.confirm(there), *gates)

    async def close(self) -> None:
        """Disconnect. Sandboxes stay, for the next start to take over."""
        await self._registry.stop()
        self._observer.save()
        parts = self._parts
        await asyncio.gather(parts.launcher.close(), parts.egress.close(), parts.ingress.close())

    # -- what the other processes report --------------------------------------------------------

    async def on_exit(self, sandbox_id: str) -> None:
        """The launcher says that a sandbox's first process died."""
        self._adoption.exited(sandbox_id)

    async def on_launcher_connect(self) -> None:
        """The launcher is back: find out who died meanwhile, and make the kernel's rules sure."""
        await self._adoption.launcher_back()

    async def entries(self) -> list[SandboxEntry]:
        """All that the egress gateway should know."""
        live = self._registry.live.values()
        found = (item.entry() for item in live if item.state in _WITH_NETWORK)
        return [entry for entry in found if entry is not None]

    def routes(self) -> list[Route]:
        """All that the ingress should know."""
        live = self._registry.live.values()
        found = (item.route() for item in live if item.state in _WITH_NETWORK)
        return [route for route in found if route is not None]


async def _start(gate: EgressGate | IngressGate) -> None:
    while True:
        try:
            await gate.start()
        except GATE_ERRORS as error:
            _log.warning("%s", error)
        else:
            return
