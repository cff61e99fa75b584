"""Control's side of the launcher: an asyncio client that reconnects."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sandgate.envd import EnvdConfig
from sandgate.inbox import Inbox
from sandgate.policy import EgressPolicy
from sandgate.runtime.protocol import (
    MAX_MESSAGE,
    Launched,
    SandboxSpec,
    Usage,
    write_attachment,
)

_RECONNECT_S = 0.1
_REQUEST_TIMEOUT_S = 30.0
_COPY_TIMEOUT_S = 900.0

_log = logging.getLogger(__name__)


class LauncherError(Exception):
    """The launcher could not do it. `retryable` says whether trying again can help."""

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retryable = retryable


class _ConnectionLostError(LauncherError):
    """The launcher died with a request under way; whether it was carried out is unknown."""

    def __init__(self) -> None:
        super().__init__("the launcher is gone", retryable=True)


class CapacityError(LauncherError):
    """A limit of the machine is reached."""


class LauncherClient:
    """Starts and ends sandboxes. Not thread-safe: belongs to one event loop."""

    def __init__(
        self,
        path: Path,
        on_exit: Callable[[str], Awaitable[None]],
        on_connect: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`on_exit` is awaited with the id of a sandbox that ended by itself.

        `on_connect` is awaited after every re-connection: sandboxes may have ended meanwhile.
        """
        self._path = path
        self._on_exit = on_exit
        self._on_connect = on_connect
        self._socket: socket.socket | None = None
        self._inbox = Inbox(MAX_MESSAGE)
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._announced: dict[int, Callable[[dict[str, Any]], None]] = {}
        self._connected = asyncio.Event()
        self._lost = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._callbacks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect; returns when the launcher answers. Raises LauncherError after 30 s."""
        self._runner = asyncio.create_task(self._run())
        await self._ready()

    async def close(self) -> None:
        """Disconnect. Sandboxes stay."""
        if self._runner is not None:
            self._runner.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._runner
        self._drop()

    @property
    def connected(self) -> bool:
        """Whether the launcher is there right now."""
        return self._connected.is_set()

    async def create(
        self,
        spec: SandboxSpec,
        config: EnvdConfig,
        on_address: Callable[[IPv4Address], None] | None = None,
    ) -> Launched:
        """Start a sandbox; returns when its envd accepts connections.

        `on_address` may be told its address before that.
        """
        attachments = (
            write_attachment(json.dumps(spec.to_json()).encode()),
            write_attachment(config.to_json().encode()),
        )

        def announced(fields: dict[str, Any]) -> None:
            if on_address is not None:
                on_address(IPv4Address(fields["address"]))

        message = {"op": "create", "announce": on_address is not None}
        reply = await self._request(message, attachments, again=False, announced=announced)
        return Launched.from_json(reply)

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox, if it exists; returns when nothing of it is left."""
        await self._request({"op": "kill", "sandbox_id": sandbox_id})

    async def set_policy(self, sandbox_id: str, policy: EgressPolicy) -> None:
        """Replace the kernel's rules; returns when they are in force."""
        attachment = write_attachment(json.dumps(policy.to_json()).encode())
        await self._request({"op": "set_policy", "sandbox_id": sandbox_id}, (attachment,))

    async def pause(self, sandbox_id: str) -> None:
        """Stop all processes of a sandbox where they stand, and cut its callers off.

        Harmless to repeat. If it fails the sandbox runs.
        """
        await self._request({"op": "pause", "sandbox_id": sandbox_id})

    async def resume(self, sandbox_id: str) -> None:
        """Let the processes of a paused sandbox go on. Harmless to repeat."""
        await self._request({"op": "resume", "sandbox_id": sandbox_id})

    async def park(self, sandbox_id: str) -> None:
        """End the processes of a sandbox and keep its disk, for a create that says so.

        Harmless to repeat. If it fails the sandbox runs, or has ended by itself.
        """
        await self._request({"op": "park", "sandbox_id": sandbox_id}, seconds=_COPY_TIMEOUT_S)

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> None:
        """Copy the disk of a sandbox; its processes stand still meanwhile. Repeatable."""
        message = {"op": "snapshot", "sandbox_id": sandbox_id, "snapshot_id": snapshot_id}
        await self._request(message, seconds=_COPY_TIMEOUT_S)

    async def clone(self, snapshot_id: str, sandbox_id: str) -> None:
        """Keep a copy of a snapshot as the disk of a sandbox that is to be created."""
        message = {"op": "clone", "sandbox_id": sandbox_id, "snapshot_id": snapshot_id}
        await self._request(message, seconds=_COPY_TIMEOUT_S)

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot, if it exists."""
        await self._request({"op": "drop_snapshot", "snapshot_id": snapshot_id})

    async def images(self) -> tuple[set[str], set[str]]:
        """The sandboxes that have a disk and no processes, and the snapshots."""
        reply = await self._request({"op": "images"})
        return set(reply["kept"]), set(reply["snapshots"])

    async def running(self) -> list[Launched]:
        """All sandboxes that have processes, paused ones included."""
        reply = await self._request({"op": "running"})
        return [Launched.from_json(item) for item in reply["sandboxes"]]

    async def usage(self, sandbox_ids: Sequence[str]) -> dict[str, Usage]:
        """What sandboxes use, without those that are gone.

        The launcher does nothing else meanwhile (some 50 µs each): ask for a few dozen at a time.
        """
        reply = await self._request({"op": "usage", "sandbox_ids": list(sandbox_ids)})
        return {name: Usage.from_json(item) for name, item in reply["sandboxes"].items()}

    async def untold(self) -> dict[str, int]:
        """How many refusals the kernel has counted and not told of, for sandboxes with some.

        It begins a new count for a sandbox that was quiet for a minute.
        """
        reply = await self._request({"op": "untold"})
        return {str(name): int(count) for name, count in reply["sandboxes"].items()}

    async def _ready(self) -> None:
        if self._connected.is_set():
            return
        try:
            await asyncio.wait_for(self._connected.wait(), _REQUEST_TIMEOUT_S)
        except TimeoutError:
            raise LauncherError("the launcher does not answer", retryable=True) from None

    async def _request(
        self,
        message: dict[str, Any],
        attachments: tuple[int, ...] = (),
        *,
        again: bool = True,
        seconds: float = _REQUEST_TIMEOUT_S,
        announced: Callable[[dict[str, Any]], None] | None = None,
    ) -> Any:
        """Send and await the reply; `again`: repeat it if the launcher dies meanwhile."""
        try:
            while True:
                try:
                    return await self._attempt(message, attachments, seconds, announced)
                except _ConnectionLostError:
                    if not again:
                        raise
        finally:
            for fd in attachments:
                os.close(fd)

    async def _attempt(
        self,
        message: dict[str, Any],
        attachments: tuple[int, ...],
        seconds: float,
        announced: Callable[[dict[str, Any]], None] | None,
    ) -> Any:
        number = next(self._ids)
        await self._send(json.dumps({"id": number, **message}).encode(), attachments)
        # Only now: a connection found dead while sending has lost requests, but not this one.
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if announced is not None:
            self._announced[number] = announced
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            raise LauncherError("the launcher does not answer", retryable=True) from None
        finally:
            self._waiting.pop(number, None)
            self._announced.pop(number, None)

    async def _send(self, data: bytes, attachments: tuple[int, ...]) -> None:
        """Send on whatever connection there is; one that turns out to be dead is replaced."""
        while True:
            await self._ready()
            if (connection := self._socket) is None:
                continue  # lost again before this task ran
            try:
                socket.send_fds(connection, [data], list(attachments))
                return
            except BlockingIOError:
                await asyncio.sleep(0.001)
            except OSError:
                self._lose()

    async def _run(self) -> None:
        first = True
        while True:
            try:
                await self._connect()
            except OSError:
                await asyncio.sleep(_RECONNECT_S)
                continue
            if not first and self._on_connect is not None:
                self._spawn(self._on_connect())
            first = False
            await self._lost.wait()

    async def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connection, str(self._path))
        except OSError:
            connection.close()
            raise
        self._socket = connection
        self._lost.clear()
        loop.add_reader(connection, self._read, connection)
        self._connected.set()

    def _lose(self) -> None:
        self._drop()
        self._lost.set()

    def _drop(self) -> None:
        connection, self._socket = self._socket, None
        self._connected.clear()
        if connection is not None:
            asyncio.get_running_loop().remove_reader(connection)
            connection.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(_ConnectionLostError())

    def _read(self, connection: socket.socket) -> None:
        while True:
            try:
                data = self._inbox.receive(connection)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._lose()
                return
            self._dispatch(json.loads(data))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if message.get("event") == "exit":
            self._spawn(self._on_exit(message["sandbox_id"]))
            return
        future = self._waiting.get(message["id"])
        if future is None or future.done():
            return
        if "announced" in message:
            self._announced[message["id"]](message["announced"])
            return
        error = message.get("error")
        if error is None:
            future.set_result(message["result"])
        elif error["kind"] == "capacity":
            future.set_exception(CapacityError(error["reason"]))
        else:
            future.set_exception(LauncherError(error["reason"]))

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._callbacks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._callbacks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("after an event of the launcher: %s", error, exc_info=error)
