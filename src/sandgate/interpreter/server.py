"""The HTTP server at port 49999: contexts and executions (wire contract, section 4)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from aiohttp import web

from sandgate.interpreter import environment, messages
from sandgate.interpreter.contexts import (
    BadRequestError,
    Context,
    Contexts,
    NoContextError,
    Variables,
    language_of,
)
from sandgate.interpreter.forks import Forks
from sandgate.interpreter.kernel import KernelStartError
from sandgate.interpreter.sink import Sink

_LOG = "/var/log/code-interpreter.log"
_ENVD = ("127.0.0.1", 49983)
_ENVD_SECONDS = 5.0
_KEEPALIVE_S = 5.0
_LAST_WORDS_S = 1.0
_MAX_BODY = 64 << 20
_IDLE_S = 2 * 3600.0
"""Longer than any idle time on the way: it is never this end that closes."""

_log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def run(door: int, nursery: socket.socket) -> NoReturn:
    """Serve the listening socket `door` until the process ends."""
    with contextlib.suppress(OSError):  # without a log, if the disk is full
        fd = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(fd, 2)
        os.close(fd)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_serve(door, nursery))
    os._exit(0)


async def _serve(door: int, nursery: socket.socket) -> None:
    forks = Forks(nursery)
    server = Server(Contexts(forks))
    runner = web.AppRunner(
        server.application(),
        handle_signals=False,
        access_log=None,
        keepalive_timeout=_IDLE_S,
        # An execution whose client has left is to stop.
        handler_cancellation=True,
    )
    await runner.setup()
    assert runner.server is not None
    listener = await asyncio.get_running_loop().create_server(
        runner.server, sock=socket.socket(fileno=door)
    )
    await forks.lost.wait()
    # Who runs code is told so; who comes now is the next interpreter's.
    listener.close()
    await asyncio.sleep(_LAST_WORDS_S)


class Server:
    """The routes."""

    def __init__(self, contexts: Contexts) -> None:
        self._contexts = contexts
        self._variables: Variables | None = None
        """The sandbox's, once somebody with the token has come."""

    def application(self) -> web.Application:
        """All of it."""
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
        app.router.add_get("/health", self._health)
        app.router.add_post("/execute", self._execute)
        app.router.add_get("/contexts", self._list)
        app.router.add_post("/contexts", self._create)
        app.router.add_delete("/contexts/{id}", self._remove)
        app.router.add_post("/contexts/{id}/restart", self._restart)
        return app

    async def _health(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text="OK")

    async def _list(self, request: web.Request) -> web.StreamResponse:
        return web.json_response([one.to_json() for one in self._contexts.list()])

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body = await _object(request)
        language = language_of(body.get("language") or "python")
        cwd = body.get("cwd") or environment.WORKDIR
        if not isinstance(cwd, str) or not cwd.startswith("/") or "\0" in cwd:
            raise BadRequestError(f"cwd: must be an absolute path, not {cwd!r:.200}")
        await self._learn_variables(request)
        context = await self._contexts.create(language, cwd, self._variables)
        return web.json_response(context.to_json())

    async def _remove(self, request: web.Request) -> web.StreamResponse:
        await self._contexts.remove(self._contexts.get(request.match_info["id"]))
        return web.Response()

    async def _restart(self, request: web.Request) -> web.StreamResponse:
        await self._contexts.restart(self._contexts.get(request.match_info["id"]))
        return web.Response()

    async def _execute(self, request: web.Request) -> web.StreamResponse:
        body = await _object(request)
        code = body.get("code")
        if not isinstance(code, str):
            raise BadRequestError(f"code: must be a string, not {code!r:.80}")
        try:
            env = environment.check(body.get("env_vars") or {})
        except ValueError as error:
            raise BadRequestError(str(error)) from error
        context = self._context(body)
        self._contexts.prepare(context)
        await self._learn_variables(request)
        response = web.StreamResponse()
        response.content_type = "application/x-ndjson"
        response.headers["Cache-Control"] = "no-store"
        await response.prepare(request)
        sink = Sink()
        running = asyncio.create_task(
            self._contexts.execute(context, code, env, self._variables, sink)
        )
        try:
            await _pass_on(sink, running, response)
        finally:
            await sink.close()
            if not running.done():
                self._contexts.abandon(context, running)
        await running
        await response.write_eof()
        return response

    def _context(self, body: dict[str, Any]) -> Context:
        context_id, language = body.get("context_id"), body.get("language")
        if context_id and language:
            raise BadRequestError("Only one of context_id or language can be provided")
        if context_id:
            return self._contexts.get(str(context_id))
        return self._contexts.default(language_of(language or "python"))

    async def _learn_variables(self, request: web.Request) -> None:
        """Ask the sandbox's daemon for the sandbox's variables, with the caller's token."""
        if self._variables is not None:
            return
        token = request.headers.get("X-Access-Token")
        try:
            async with asyncio.timeout(_ENVD_SECONDS):
                self._variables = await _variables(token)
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("the sandbox's variables are not known: %s", error)


async def _variables(token: str | None) -> Variables | None:
    """The sandbox's variables; None if the token is not the right one.

    Raises OSError or ValueError. A client library would take longer for it than a kernel to start.
    """
    lines = [f"GET /envs HTTP/1.0\r\nHost: {_ENVD[0]}"]
    if token is not None:
        lines.append(f"X-Access-Token: {token}")
    reader, writer = await asyncio.open_connection(*_ENVD)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode())
        answer = await reader.read()
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if head.split(b" ")[1:2] != [b"200"]:
        return None
    return environment.check(json.loads(body))


async def _pass_on(sink: Sink, running: asyncio.Task[None], response: web.StreamResponse) -> None:
    """Write lines as they come, and keepalives while none do."""
    ended = asyncio.create_task(_end_with(sink, running))
    try:
        while True:
            data = await sink.take(_KEEPALIVE_S)
            await response.write(messages.encode(messages.KEEPALIVE) if data is None else data)
            if data is not None and data.endswith(_LAST):
                return
    finally:
        ended.cancel()


_LAST = messages.encode(messages.END)


async def _end_with(sink: Sink, running: asyncio.Task[None]) -> None:
    await asyncio.wait([running])
    await sink.put(messages.END)


async def _object(request: web.Request) -> dict[str, Any]:
    """The JSON object in a request. Raises BadRequestError."""
    try:
        body = await request.json() if request.can_read_body else {}
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadRequestError("the body must be a JSON object")
    return body


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors as the SDKs read them: plain text."""
    try:
        return await handler(request)
    except NoContextError as error:
        return web.Response(status=404, text=str(error))
    except BadRequestError as error:
        return web.Response(status=400, text=str(error))
    except KernelStartError as error:
        return web.Response(status=500, text=str(error))
