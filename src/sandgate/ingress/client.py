"""Changes the routes of a running HAProxy over its Runtime API (the admin socket).

HAProxy keeps routes in memory only. The client therefore pushes all of them whenever it connects:
after the first start and after every restart. Until then HAProxy lets requests wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from sandgate.ingress.handshakes import end_unfinished
from sandgate.ingress.layout import ROUTES_MAP
from sandgate.ingress.routes import FILLED, Route, check_sandbox_id

_LOG = logging.getLogger(__name__)
_PROMPT = b"\n> "
_BLOCK = 8_000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5


class IngressError(Exception):
    """HAProxy could not be reached in time, or refused a change."""


class IngressClient:
    """A connection to HAProxy that lasts, and comes back.

    `routes` gives all routes that should exist; it is called, on the event loop, each time a
    connection has been made. `timeout` (seconds) bounds every change, waiting for a restart
    included. Clients have `handshake` to twice as many seconds for their TLS handshake.
    """

    def __init__(
        self,
        socket: Path,
        routes: Callable[[], Iterable[Route]],
        *,
        timeout: float = 5.0,
        handshake: float = 15.0,
    ) -> None:
        self._socket = socket
        self._routes = routes
        self._timeout = timeout
        self._handshake = handshake
        self._lock = asyncio.Lock()
        self._ready = asyncio.Event()
        self._known: set[str] = set()
        self._map = ""
        self._fault = "no connection was tried"
        self._cli: _Cli | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Is HAProxy there right now, with all routes?"""
        return self._ready.is_set()

    async def start(self) -> None:
        """Connect and push all routes.

        Raises :class:`IngressError` if that takes too long; it is tried on until :meth:`close`,
        and may be waited for again by another call.
        """
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep_connected(), name="ingress-client")
            self._sweeper = asyncio.create_task(self._sweep(), name="ingress-handshakes")
        try:
            await asyncio.wait_for(self._ready.wait(), self._timeout)
        except TimeoutError:
            raise IngressError(
                f"HAProxy did not answer on {self._socket} within {self._timeout} s: {self._fault}"
            ) from None

    async def close(self) -> None:
        """Let go of HAProxy. The routes stay as they are."""
        for task in (self._keeper, self._sweeper):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._keeper = self._sweeper = None

    async def add(self, route: Route) -> None:
        """Make a sandbox reachable; it is when this returns. Raises :class:`IngressError`."""
        await self._change(route.sandbox_id, route)

    async def update(self, route: Route) -> None:
        """Replace the route of a sandbox, for the next request. Raises :class:`IngressError`."""
        await self._change(route.sandbox_id, route)

    async def remove(self, sandbox_id: str) -> None:
        """Forget a sandbox; an unknown one is no error. Raises :class:`IngressError`.

        Connections that are open live on until the sandbox's end closes them.
        """
        check_sandbox_id(sandbox_id)
        await self._change(sandbox_id, None)

    async def _change(self, sandbox_id: str, route: Route | None) -> None:
        try:
            async with asyncio.timeout(self._timeout), self._lock:
                while True:
                    await self._ready.wait()
                    try:
                        await self._apply(sandbox_id, route)
                    except ConnectionError:
                        # Lost in the middle of it. The routes pushed to the next HAProxy may or
                        # may not contain this change: make it again.
                        self._ready.clear()
                    else:
                        return
        except TimeoutError:
            raise IngressError(
                f"HAProxy did not acknowledge the route of {sandbox_id} within {self._timeout} s"
            ) from None

    async def _apply(self, sandbox_id: str, route: Route | None) -> None:
        known = sandbox_id in self._known
        if route is None:
            if known:
                await self._acknowledged(f"del map {self._map} {sandbox_id}")
                self._known.discard(sandbox_id)
            return
        verb = "set" if known else "add"
        await self._acknowledged(f"{verb} map {self._map} {sandbox_id} {route.value()}")
        self._known.add(sandbox_id)

    async def _acknowledged(self, command: str) -> None:
        """Run a command that answers nothing when it succeeds."""
        answer = await self._ask(command)
        if answer:
            # Neither the command nor an answer that quotes a row: there may be a token in it.
            said = "it quotes the row" if "|" in answer else answer[:200]
            raise IngressError(f"HAProxy refused to {command.partition(' ')[0]} a route: {said}")

    async def _ask(self, command: str) -> str:
        if self._cli is None:
            raise ConnectionResetError("not connected to HAProxy")
        return await self._cli.ask(command)

    async def _keep_connected(self) -> None:
        """Connect, push, wait for the end of the connection, again and again."""
        pause = _FIRST_PAUSE
        while True:
            loop = asyncio.get_running_loop()
            cli: _Cli | None = None
            try:
                _, cli = await loop.create_unix_connection(_Cli, str(self._socket))
                self._cli = cli
                async with asyncio.timeout(self._timeout):
                    count = await self._push_all()
                pause = _FIRST_PAUSE
                self._ready.set()
                _LOG.info("connected to HAProxy, %d routes pushed", count)
                await cli.ended.wait()
                _LOG.warning("HAProxy closed the connection; connecting again")
                self._fault = "it closed the connection"
            except (OSError, TimeoutError, IngressError) as error:
                self._fault = str(error) or type(error).__name__
                _LOG.debug("HAProxy is not ready: %s", self._fault)
            except (
                Exception
            ):  # of the callback: without this task the routes would be stale for good
                self._fault = "the routes could not be listed"
                _LOG.exception("the routes could not be listed for HAProxy")
            finally:
                self._ready.clear()
                self._cli = None
                if cli is not None:
                    cli.abort()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _sweep(self) -> None:
        """End what does not finish its handshake, again and again."""
        unfinished: set[str] = set()
        while True:
            await asyncio.sleep(self._handshake)
            try:
                async with asyncio.timeout(self._handshake):
                    unfinished = await end_unfinished(self._socket, unfinished)
            except (OSError, TimeoutError) as error:
                _LOG.debug("handshakes could not be looked at: %s", error)

    async def _push_all(self) -> int:
        """Replace the whole map in one step, whatever it held."""
        await self._ask("prompt")
        self._map = _map_reference(await self._ask("show map"))
        answer = await self._ask(f"prepare map {self._map}")
        version = answer.rpartition(":")[2].strip()
        if not version.isdigit():
            raise IngressError(f"HAProxy cannot prepare a map: {answer[:200]}")
        # Changes asked for from here on wait until these are pushed, and come after them.
        rows = {route.sandbox_id: route.value() for route in self._routes()}
        for block in _blocks({**rows, FILLED: "yes"}):
            await self._acknowledged(f"add map @{version} {self._map} <<\n{block}")
        await self._acknowledged(f"commit map @{version} {self._map}")
        self._known = set(rows)
        return len(rows)


class _Cli(asyncio.Protocol):
    """HAProxy's command line in its interactive mode: one command, one answer, then a prompt."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answer: asyncio.Future[str] | None = None

    async def ask(self, command: str) -> str:
        """Send one command (with its payload, if it has one) and return the answer, stripped.

        One at a time. Raises ConnectionError when the connection is or gets closed.
        """
        if self._transport is None or self.ended.is_set():
            raise ConnectionResetError("HAProxy closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(command.encode("ascii") + b"\n")
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.abort()  # the answer may still come, and would be taken for the next one's
            raise

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not to be asserted: uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(_PROMPT):
            return
        # Each line of a payload is answered by a "+ ", all of which come first.
        text = self._received[: -len(_PROMPT)].decode("ascii", "replace")
        self._received.clear()
        while text.startswith("+ "):
            text = text[2:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(text.strip())

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("HAProxy closed the connection"))


def _map_reference(listing: str) -> str:
    """`#<number>` of the route map in an answer to `show map`."""
    for line in listing.splitlines():
        number, _, rest = line.partition(" ")
        if f"/{ROUTES_MAP})" in rest:
            return f"#{number}"
    raise IngressError("this HAProxy has no route map: it runs with another configuration")


def _blocks(rows: dict[str, str]) -> Iterable[str]:
    """Rows as payloads, each well below HAProxy's buffer of 16 KiB and ended by an empty line."""
    lines: list[str] = []
    size = 0
    for sandbox_id, value in rows.items():
        line = f"{sandbox_id} {value}\n"
        if size + len(line) > _BLOCK:
            yield "".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    if lines:
        yield "".join(lines)
