"""Kernels that speak Jupyter's protocol: Python, forked, and R, started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import queue
import secrets
import signal
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jupyter_client.asynchronous import AsyncKernelClient

from sandgate.interpreter import environment, messages
from sandgate.interpreter.entry import KERNEL_OOM_DISTANCE, raise_oom_score
from sandgate.interpreter.forks import Forks
from sandgate.interpreter.kernel import (
    Emit,
    KernelDiedError,
    KernelStartError,
    Request,
    how_it_ended,
)
from sandgate.interpreter.python_kernel import ENVIRONMENT_KEY, LASTING_KEY, PORTS, READY, Spec

_K = TypeVar("_K", bound="JupyterKernel")

_START_S = 30.0
_WELCOME_S = 0.3
_REPLY_S = 0.5
"""How long an execution that is over waits for its reply: an interrupt may have cost it."""
_MAX_REASON = 4096


async def start_python(forks: Forks, cwd: str, env: Mapping[str, str]) -> JupyterKernel:
    """A Python kernel. Raises KernelStartError."""
    link = _Link.make()
    ready, told = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        spec = Spec(link.name, link.key, cwd, {**environment.base(), **env})
        fork = await forks.start(spec, told, link.window_fd)
        os.close(told)
        told = -1
        await _until_ready(ready, fork.ended)
        return await _connect(link, fork.pid, fork.ended, JupyterKernel)
    finally:
        for fd in (ready, told, link.window_fd):
            if fd >= 0:
                os.close(fd)


async def start_r(cwd: str, env: Mapping[str, str]) -> RKernel:
    """An R kernel. Raises KernelStartError."""
    link = _Link.make()
    connection = os.memfd_create("connection", 0)
    try:
        os.write(connection, json.dumps(link.connection()).encode())
        arguments = ("--slave", "--no-save", "-e", "IRkernel::main()", "--args")
        process = await asyncio.create_subprocess_exec(
            *("R", *arguments, f"/dev/fd/{connection}"),
            cwd=cwd,
            env={**environment.base(), **env},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[connection],
            start_new_session=True,
        )
    except OSError as error:
        raise KernelStartError(f"R could not be started: {error}") from error
    finally:
        os.close(connection)
        os.close(link.window_fd)
    with contextlib.suppress(OSError):  # it has ended already
        raise_oom_score(process.pid, KERNEL_OOM_DISTANCE)
    ended = asyncio.ensure_future(process.wait())
    return await _connect(link, process.pid, ended, RKernel)


@dataclass(frozen=True, slots=True)
class _Link:
    """How a kernel and its client find each other."""

    name: str
    key: str
    window: mmap.mmap
    window_fd: int

    @classmethod
    def make(cls) -> _Link:
        fd = os.memfd_create("window", os.MFD_CLOEXEC)
        os.truncate(fd, 8)
        name = f"sandgate-{secrets.token_hex(8)}"
        return cls(name, secrets.token_hex(32), mmap.mmap(fd, 8), fd)

    def connection(self) -> dict[str, Any]:
        """What Jupyter calls a connection file."""
        fixed = {"transport": "ipc", "signature_scheme": "hmac-sha256", "kernel_name": ""}
        ports = {f"{channel}_port": number for channel, number in PORTS.items()}
        return {"ip": f"@{self.name}", "key": self.key, **fixed, **ports}


async def _until_ready(ready: int, ended: asyncio.Future[int]) -> None:
    """Wait for a byte from the kernel."""
    loop = asyncio.get_running_loop()
    heard = asyncio.Event()
    loop.add_reader(ready, heard.set)
    waiter = asyncio.ensure_future(heard.wait())
    try:
        both: list[asyncio.Future[Any]] = [waiter, ended]
        await asyncio.wait(both, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        said = b""
        with contextlib.suppress(BlockingIOError):
            said = os.read(ready, _MAX_REASON)
        if said != READY:
            told = said.decode(errors="replace") or f"it said nothing within {_START_S:.0f} s"
            raise KernelStartError(f"the Python kernel did not start: {told}")
    finally:
        loop.remove_reader(ready)
        waiter.cancel()


async def _connect(
    link: _Link,
    pid: int,
    ended: asyncio.Future[int],
    kind: type[_K],
) -> _K:
    client = AsyncKernelClient()
    client.load_connection_info(link.connection())
    client.start_channels(hb=False, stdin=False)
    for channel in (client.iopub_channel, client.shell_channel):
        channel.socket.rcvhwm = channel.socket.sndhwm = 0
    end = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(queue.Empty):
            # Either a welcome or what the request below makes it say: the subscription holds.
            await client.get_iopub_msg(timeout=_WELCOME_S)
            return kind(pid, ended, client, link.window)
        if ended.done() or time.monotonic() > end:
            _signal_group(pid, signal.SIGKILL)
            client.stop_channels()
            told = how_it_ended(await ended)
            raise KernelStartError(f"the kernel did not answer: {told}")
        client.kernel_info()


@dataclass(slots=True, eq=False)
class _Execution:
    """What runs."""

    id: str
    emit: Emit
    idle: asyncio.Future[None]
    """Done when the kernel has said all."""
    reply: asyncio.Future[Mapping[str, Any]]
    """The kernel's answer."""
    failed: bool = False
    """Whether the kernel has said an error."""


class JupyterKernel:
    """A kernel and the client of it."""

    def __init__(
        self, pid: int, ended: asyncio.Future[int], client: AsyncKernelClient, window: mmap.mmap
    ) -> None:
        """:param window: where the kernel reads how many characters of output were taken."""
        self._pid = pid
        self._ended = ended
        self._client = client
        self._window = window
        self._taken = 0
        self._current: _Execution | None = None
        self._leaving = False
        self._tasks = [
            asyncio.create_task(self._follow()),
            asyncio.create_task(self._hear_replies()),
        ]

    @property
    def alive(self) -> bool:
        """See Kernel."""
        # One that was told to exit goes on for a moment, and would end in the next execution.
        return not self._leaving and not self._ended.done()

    async def execute(self, request: Request, emit: Emit) -> None:
        """See Kernel."""
        variables = {ENVIRONMENT_KEY: dict(request.env), LASTING_KEY: dict(request.lasting)}
        await self._request(request.code, emit, variables)

    def interrupt(self) -> None:
        """See Kernel."""
        _signal_group(self._pid, signal.SIGINT)

    async def kill(self) -> None:
        """See Kernel."""
        _signal_group(self._pid, signal.SIGKILL)
        await asyncio.shield(self._ended)
        for task in self._tasks:
            task.cancel()
        self._client.stop_channels()

    async def _request(
        self, code: str, emit: Emit, metadata: Mapping[str, Any], *, silent: bool = False
    ) -> None:
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        session = self._client.session
        message = session.msg("execute_request", content, metadata=dict(metadata))
        loop = asyncio.get_running_loop()
        idle: asyncio.Future[None] = loop.create_future()
        reply: asyncio.Future[Mapping[str, Any]] = loop.create_future()
        current = self._current = _Execution(message["header"]["msg_id"], emit, idle, reply)
        try:
            self._client.shell_channel.send(message)
            both: list[asyncio.Future[Any]] = [idle, self._ended]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not idle.done():
                # What it said last is still under way.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(idle), 0.2)
            if not idle.done():
                raise KernelDiedError(how_it_ended(self._ended.result()))
            await asyncio.wait([reply], timeout=_REPLY_S)
            failure = messages.failure(reply.result()) if reply.done() else None
            if failure is not None and not current.failed:
                await emit(failure)
        finally:
            self._current = None

    async def _follow(self) -> None:
        """Pass on what belongs to the current execution; take the rest out of the way."""
        while True:
            message = await self._client.get_iopub_msg()
            current = self._current
            if current is not None and message["parent_header"].get("msg_id") == current.id:
                event = messages.from_jupyter(message)
                if event is not None:
                    current.failed = current.failed or event["type"] == "error"
                    await current.emit(event)
                if messages.ends(message) and not current.idle.done():
                    current.idle.set_result(None)
            if message["msg_type"] == "stream":
                self._taken += len(message["content"]["text"])
                self._window[:8] = struct.pack("Q", self._taken)

    async def _hear_replies(self) -> None:
        """See which request was answered, and whether it asked the kernel to exit."""
        while True:
            message = await self._client.get_shell_msg()
            current = self._current
            if current is not None and message["parent_header"].get("msg_id") == current.id:
                self._leaving = self._leaving or messages.asks_to_exit(message)
                if not current.reply.done():
                    current.reply.set_result(message)


class RKernel(JupyterKernel):
    """R knows nothing of variables in a request, so they are set by code before and after it."""

    async def execute(self, request: Request, emit: Emit) -> None:
        """See Kernel."""
        before = [f"Sys.setenv({_name(k)} = {_text(v)})" for k, v in request.lasting.items()]
        saved = ", ".join(map(_text, request.env))
        if request.env:
            before.append(f".sandgate <- Sys.getenv(c({saved}), unset = NA, names = TRUE)")
            before += [f"Sys.setenv({_name(k)} = {_text(v)})" for k, v in request.env.items()]
        if before:
            await self._request("; ".join(before), _nowhere, {}, silent=True)
        try:
            await self._request(request.code, emit, {})
        finally:
            if request.env and not self._ended.done():
                await self._request(_RESTORE, _nowhere, {}, silent=True)


_RESTORE = (
    "for (.n in names(.sandgate)) if (is.na(.sandgate[[.n]])) Sys.unsetenv(.n) else "
    "do.call(Sys.setenv, as.list(.sandgate[.n])); rm(.sandgate, .n)"
)


def _name(text: str) -> str:
    return f"`{text}`"


def _text(text: str) -> str:
    """A string in R."""
    return json.dumps(text)


async def _nowhere(_: object) -> None:
    """Emit nothing."""


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)
