"""Takes snapshots, and knows which there are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sandgate.node.errors import ChangeFailed, InvalidRequest, SandboxNotFound, SnapshotNotFound
from sandgate.node.identifiers import new_snapshot_id
from sandgate.node.parts import Parts
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import Event, State
from sandgate.runtime.client import LauncherError
from sandgate.store import SnapshotRecord, StoreError

_NAME = re.compile(r"[a-z0-9]([a-z0-9._/-]{0,126}[a-z0-9])?")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Copies of sandboxes' file systems. They cost their size on the node's disk until deleted."""

    parts: Parts
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]

    async def take(self, sandbox: LiveSandbox, name: str | None) -> SnapshotRecord:
        """Keep a sandbox's file system. One that runs stands still meanwhile.

        Raises ChangeFailed, InvalidRequest, SandboxNotFound, StoreError.
        """
        if name is not None and not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"invalid name {name[:130]!r}: use a-z, 0-9 and, between them, '.', '_', '-', '/'"
            )
        record = await self.copy(sandbox, name)
        try:
            self.parts.store.add_snapshot(record)
            await self.parts.store.flush()
        except StoreError:
            with contextlib.suppress(StoreError):
                self.parts.store.delete_snapshot(record.snapshot_id)
            await self.drop(record.snapshot_id)
            raise
        sandbox.journal.add("Snapshot taken", snapshot=record.snapshot_id)
        return record

    async def copy(self, sandbox: LiveSandbox, name: str | None = None) -> SnapshotRecord:
        """As :meth:`take`, but unknown to the store: the caller drops it."""
        async with sandbox.policy_lock:  # no pause or resumption is under way
            if sandbox.state not in (State.RUNNING, State.PAUSED):
                raise SandboxNotFound(sandbox.sandbox_id)
            began = time.perf_counter()
            record = SnapshotRecord(
                snapshot_id=new_snapshot_id(),
                sandbox_id=sandbox.sandbox_id,
                name=name,
                template=sandbox.record.template,
                disk_mb=sandbox.record.disk_mb,
                created_at=datetime.now(UTC),
                owner=sandbox.record.owner,
            )
            if sandbox.state is State.RUNNING:
                sandbox.take(Event.SNAPSHOT)
            # A task of its own: who asked may give up, and the sandbox must not stay in between.
            sandbox.change = self.spawn(self._copy(sandbox, record.snapshot_id))
            await asyncio.shield(sandbox.change)
        _log.info(
            "snapshot taken id=%s sandbox=%s ms=%.1f",
            record.snapshot_id,
            sandbox.sandbox_id,
            (time.perf_counter() - began) * 1000,
        )
        return record

    async def _copy(self, sandbox: LiveSandbox, snapshot_id: str) -> None:
        name = sandbox.sandbox_id
        try:
            await self.parts.launcher.snapshot(name, snapshot_id)
        except LauncherError as error:
            if sandbox.state in (State.KILLING, State.ENDED):
                raise SandboxNotFound(name) from error
            raise ChangeFailed(f"no snapshot: {error}", retryable=error.retryable) from error
        finally:
            if sandbox.state is State.SNAPSHOTTING:
                sandbox.take(Event.SAVED)

    def find(self, reference: str, owner: str) -> SnapshotRecord | None:
        """The owner's snapshot of this id, or newest of this name; a `:tag` counts for nothing."""
        return self.parts.store.find_snapshot(reference.partition(":")[0], owner)

    async def delete(self, reference: str, owner: str) -> None:
        """Delete a snapshot of an owner. Raises SnapshotNotFound, LauncherError."""
        record = self.find(reference, owner)
        if record is None:
            raise SnapshotNotFound(f"there is no snapshot '{reference[:150]}'")
        self.parts.store.delete_snapshot(record.snapshot_id)
        await self.drop(record.snapshot_id)

    async def drop(self, snapshot_id: str) -> None:
        """Remove the copy; tried again at the next start if the launcher is away."""
        try:
            await self.parts.launcher.drop_snapshot(snapshot_id)
        except LauncherError as error:
            _log.error("snapshot %s is not gone: %s", snapshot_id, error)

    async def tidy(self) -> None:
        """Make store and copies agree: whatever lacks its other half goes."""
        _, there = await self.parts.launcher.images()
        known = {record.snapshot_id for record in self.parts.store.snapshots()}
        for snapshot_id in known - there:
            self.parts.store.delete_snapshot(snapshot_id)
            _log.error("snapshot %s is lost: its file is gone", snapshot_id)
        for snapshot_id in there - known:
            await self.drop(snapshot_id)
