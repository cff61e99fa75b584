"""Starts sandboxes, wholly or not at all."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from sandgate.node.admittance import Admittance
from sandgate.node.ending import Ender
from sandgate.node.errors import EndPending, InvalidRequest, NotReady, StartFailed
from sandgate.node.expiry import ExpiryQueue
from sandgate.node.parts import Parts
from sandgate.node.plans import (
    check_ingress,
    envd_config,
    launch_spec,
    moment_in,
    network_policy,
    new_record,
    start_error,
)
from sandgate.node.registry import Registry
from sandgate.node.sandbox import CreateRequest, LiveSandbox
from sandgate.node.states import Event, State
from sandgate.store import SandboxRecord, SnapshotRecord

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Starter:
    """Moves sandboxes from nothing to RUNNING."""

    parts: Parts
    registry: Registry
    expiry: ExpiryQueue
    ender: Ender
    admittance: Admittance

    async def start(
        self, request: CreateRequest, snapshot: SnapshotRecord | None, *, lists_origin: bool
    ) -> SandboxRecord:
        """Start a sandbox, on a copy of `snapshot` if there is one.

        `lists_origin`: its record tells of the snapshot. Raises InvalidRequest, TemplateNotFound,
        LimitReached, NoSpace, NotReady or StartFailed; nothing of the sandbox is left then.
        """
        began = time.perf_counter()
        sandbox = self._admit(request, snapshot)
        if not lists_origin:
            sandbox.record = replace(sandbox.record, origin=None)
        try:
            with self.admittance.starting():
                await self._launch(sandbox)
        except BaseException as error:
            await self._undo(sandbox)
            told = start_error(error, sandbox)
            if told is error:
                raise
            raise told from error
        record = sandbox.record
        # After the answer, which is sent before this task next waits for anything.
        asyncio.get_running_loop().call_soon(
            _log.info,
            "sandbox created id=%s owner=%s template=%s address=%s timeout=%s ms=%.1f",
            record.sandbox_id,
            record.owner,
            record.template,
            sandbox.address,
            request.timeout,
            (time.perf_counter() - began) * 1000,
        )
        return record

    def _admit(self, request: CreateRequest, snapshot: SnapshotRecord | None) -> LiveSandbox:
        """Everything that can be refused is refused here, before anything is touched."""
        parts, settings, live = self.parts, self.parts.settings, self.registry.live
        self.registry.require_adopted()
        if request.timeout <= 0:
            raise InvalidRequest(f"timeout must be at least 1 second, not {request.timeout}")
        end_at = moment_in(request.timeout, settings)
        policy = network_policy(request.network, request.internet)
        check_ingress(request.network)
        template = snapshot.template if snapshot else parts.templates.resolve(request.template)
        down = [name for name, up in parts.connected().items() if not up]
        if down:
            raise NotReady(f"the node is not ready: waiting for {', '.join(down)}")
        self.admittance.admit(request.caller)
        record = new_record(request, settings, template, end_at, snapshot)
        image = None if snapshot is None else snapshot.snapshot_id
        sandbox = LiveSandbox(record, policy, image=image)
        live[record.sandbox_id] = sandbox
        return sandbox

    async def _launch(self, sandbox: LiveSandbox) -> None:
        record, parts = sandbox.record, self.parts
        if sandbox.image is not None:
            await parts.launcher.clone(sandbox.image, record.sandbox_id)
            _require_creating(sandbox)
        spec = launch_spec(record, sandbox.policy, kept=sandbox.image is not None)
        telling: list[asyncio.Task[None]] = []

        def tell_gates(address: IPv4Address) -> None:
            if sandbox.state is not State.CREATING or telling:
                return
            sandbox.address = address
            entry, route = sandbox.entry(), sandbox.route()
            assert entry is not None and route is not None, "it has an address now"
            telling.append(asyncio.create_task(parts.egress.set(entry)))
            telling.append(asyncio.create_task(parts.ingress.add(route)))

        try:
            # The gates are told while it starts. Neither waits for the other: there is no process
            # yet that could reach out, and nobody has the token that opens the route.
            launched = await parts.launcher.create(spec, envd_config(record), tell_gates)
            tell_gates(launched.address)
            await asyncio.gather(*telling)
        except BaseException:
            # Not before they know it can they be told to forget it.
            await asyncio.gather(*telling, return_exceptions=True)
            raise
        _require_creating(sandbox)
        parts.store.insert(record)
        sandbox.take(Event.STARTED)
        sandbox.note_network()
        self.expiry.set(record.sandbox_id, record.end_at.timestamp())

    async def _undo(self, sandbox: LiveSandbox) -> None:
        """Take down what failed to start."""
        try:
            await self.ender.complete(sandbox, Event.FAILED)
        except EndPending:
            _log.warning("sandbox %s failed to start and is not gone yet", sandbox.sandbox_id)


def _require_creating(sandbox: LiveSandbox) -> None:
    """Asked before it is written down: after the end began it would never be struck out."""
    if sandbox.state is not State.CREATING:
        raise StartFailed("its first process died")
