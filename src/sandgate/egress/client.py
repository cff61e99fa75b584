"""The control process's end of the gateway's control socket."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from types import TracebackType
from typing import Any

from sandgate.egress.table import SandboxEntry
from sandgate.policy import EgressPolicy

CALL_SECONDS = 5.0
"""How long a call may take, reconnecting included."""

EXPLAIN_SECONDS = 15.0
"""How long an explanation may take, a name's servers included."""

RETRY_SECONDS = 0.05
"""Pause between attempts to connect."""

_logger = logging.getLogger(__name__)

OnConnect = Callable[[], Awaitable[list[SandboxEntry]]]


class EgressUnavailable(ConnectionError):
    """The gateway cannot be reached; sandboxes that it does not know get nothing meanwhile."""


class EgressRefused(ValueError):
    """The gateway did not accept a request."""


class EgressClient:
    """Keeps the gateway told about all sandboxes.

    On every connection, the first as well as each after the gateway was restarted, `on_connect`
    is asked for all entries and they replace what the gateway knew; calls wait for that.
    """

    def __init__(self, path: Path, on_connect: OnConnect) -> None:
        self._path = path
        self._on_connect = on_connect
        self._writer: asyncio.StreamWriter | None = None
        self._replies: dict[int, asyncio.Future[None]] = {}
        self._next_id = 0
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Is the gateway there, and told everything?"""
        return self._ready.is_set()

    def begin(self) -> None:
        """Connect in the background, and stay connected."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def start(self, timeout: float = 10.0) -> None:  # noqa: ASYNC109 - bounds the first sync only
        """Connect and tell the gateway everything; later losses are repaired in the background.

        Raises :class:`EgressUnavailable` if that is not done after `timeout` seconds.
        """
        self.begin()
        try:
            async with asyncio.timeout(timeout):
                await self._ready.wait()
        except TimeoutError:
            await self.close()
            raise EgressUnavailable(f"no egress gateway at {self._path}") from None

    async def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or change its policy. In force when this returns.

        Raises :class:`EgressUnavailable` or :class:`EgressRefused`.
        """
        await self._call(_set_request(entry))

    async def remove(self, address: IPv4Address) -> None:
        """Forget a sandbox and reset its connections. Raises as :meth:`set` does."""
        await self._call({"op": "remove", "address": str(address)})

    async def explain(self, policy: EgressPolicy, target: str) -> dict[str, Any]:
        """What would become of a connection to `target` (`sandgate.egress.explain`).

        Over a connection of its own: names are looked up meanwhile. Raises as :meth:`set` does;
        :class:`EgressRefused` for a target that is none.
        """
        try:
            async with asyncio.timeout(EXPLAIN_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(self._path))
                try:
                    request = {"op": "explain", "policy": policy.to_json(), "target": target}
                    writer.write(json.dumps({"id": 0, **request}).encode() + b"\n")
                    answer = json.loads(await reader.readline())
                finally:
                    writer.close()
        except (OSError, TimeoutError, ValueError):
            raise EgressUnavailable(f"the egress gateway at {self._path} did not answer") from None
        if not answer["ok"]:
            raise EgressRefused(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    async def ping(self) -> None:
        """Return once the gateway has answered. Raises as :meth:`set` does."""
        await self._call({"op": "ping"})

    async def close(self) -> None:
        """Disconnect. The gateway goes on with what it knows."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def __aenter__(self) -> EgressClient:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def _call(self, request: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                while True:
                    await self._ready.wait()
                    # Every operation may be repeated, so a lost connection just means once more.
                    with suppress(ConnectionError):
                        return await self._send(request)
        except TimeoutError:
            raise EgressUnavailable(f"the egress gateway at {self._path} did not answer") from None

    async def _send(self, request: dict[str, Any]) -> None:
        writer = self._writer
        if writer is None:
            raise ConnectionResetError
        self._next_id += 1
        id_ = self._next_id
        reply: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._replies[id_] = reply
        try:
            writer.write(json.dumps({"id": id_, **request}).encode() + b"\n")
            await writer.drain()
            await reply
        finally:
            self._replies.pop(id_, None)
            if reply.done() and not reply.cancelled():
                reply.exception()  # seen: drain() may have failed before it was waited for

    async def _run(self) -> None:
        while True:
            try:
                reader, self._writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            listening = asyncio.get_running_loop().create_task(self._listen(reader))
            try:
                await self._synchronise()
                self._ready.set()
                await listening
            except ConnectionError as error:
                _logger.warning("telling the egress gateway all sandboxes failed: %s", error)
            except Exception:
                # Whatever on_connect raised: the gateway must be told again all the same.
                _logger.exception("telling the egress gateway all sandboxes failed")
            finally:
                self._ready.clear()
                listening.cancel()
                self._writer.close()
                self._writer = None
                self._fail_replies()
            await asyncio.sleep(RETRY_SECONDS)

    async def _synchronise(self) -> None:
        entries = await self._on_connect()
        for entry in entries:
            await self._send(_set_request(entry))
        await self._send({"op": "retain", "addresses": [str(entry.address) for entry in entries]})

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand out replies until the connection ends."""
        try:
            while line := await reader.readline():
                message = json.loads(line)
                reply = self._replies.get(message["id"])
                if reply is None or reply.done():
                    continue
                if message["ok"]:
                    reply.set_result(None)
                else:
                    reply.set_exception(EgressRefused(message["error"]))
        except OSError:
            pass  # same as its end
        finally:
            self._fail_replies()

    def _fail_replies(self) -> None:
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(ConnectionResetError("the egress gateway went away"))


def _set_request(entry: SandboxEntry) -> dict[str, Any]:
    return {
        "op": "set",
        "sandbox_id": entry.sandbox_id,
        "address": str(entry.address),
        "policy": entry.policy.to_json(),
    }
