"""What the checks are written with: calls that fit both flavours of the SDK, and their sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import e2b

SDK: Any = e2b


class Absent(Exception):
    """This version of the SDK has no such thing."""


async def done(value: Any) -> Any:
    """The value of a call to either flavour of the SDK."""
    return await value if inspect.isawaitable(value) else value


async def collected(stream: Any) -> list[Any]:
    """All items of a stream of either flavour."""
    if hasattr(stream, "__aiter__"):
        return [item async for item in stream]
    return list(stream)


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Wait for a condition (which may be awaited) to give something true."""
    end = time.monotonic() + seconds
    while not (value := await done(condition())):
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.05)
    return value


def member(owner: Any, name: str, *options: str) -> Any:
    """A method of the SDK; raises `Absent` if it, or one of its options, is not there."""
    found = getattr(owner, name, None)
    if found is None:
        raise Absent
    if options:
        known = inspect.signature(found).parameters
        if not all(option in known for option in options):
            raise Absent
    return found


def kind(name: str, *older: str) -> type[BaseException]:
    """An exception of the SDK, or what older versions raise instead."""
    for candidate in (name, *older):
        if found := getattr(SDK, candidate, None):
            exception: type[BaseException] = found
            return exception
    raise Absent


async def raised(expected: type[BaseException], call: Callable[[], Any]) -> BaseException:
    """The exception that a call raises, which must be of this type."""
    try:
        value = await done(call())
    except expected as error:
        return error
    raise AssertionError(f"{value!r} instead of {expected.__name__}")


class Run:
    """One flavour of the SDK, and a sandbox that the checks share."""

    def __init__(self, flavour: str) -> None:
        self.is_async = flavour == "async"
        self.Sandbox: Any = SDK.AsyncSandbox if self.is_async else SDK.Sandbox
        self.sandbox: Any = None
        self._made: list[Any] = []

    async def create(self, *arguments: Any, **options: Any) -> Any:
        """A sandbox of the caller's own; ended at the end."""
        if options:
            member(self.Sandbox, "create", *options)
        sandbox = await done(self.Sandbox.create(*arguments, **options))
        self._made.append(sandbox)
        return sandbox

    async def end(self) -> None:
        """Kill everything that is left."""
        for sandbox in self._made:
            with contextlib.suppress(SDK.SandboxException):
                await done(sandbox.kill())

    async def sh(self, command: str, **options: Any) -> Any:
        """The result of a command in the shared sandbox."""
        return await done(self.sandbox.commands.run(command, **options))

    async def background(self, command: str, **options: Any) -> Any:
        """A handle on a command in the shared sandbox."""
        return await done(self.sandbox.commands.run(command, background=True, **options))

    @contextlib.asynccontextmanager
    async def folder(self) -> AsyncIterator[str]:
        """A directory of the shared sandbox that nobody else uses."""
        path = f"/home/user/{uuid.uuid4().hex}"
        await done(self.sandbox.files.make_dir(path))
        yield path

    async def terminal(self, output: list[bytes], **options: Any) -> Any:
        """A handle on a pseudo-terminal whose output is added to `output`."""
        size = SDK.PtySize(rows=30, cols=111) if hasattr(SDK, "PtySize") else pty_size(30, 111)
        if self.is_async:
            options["on_data"] = output.append
        return await done(self.sandbox.pty.create(size, **options))

    async def read_terminal(self, handle: Any, output: list[bytes]) -> Any:
        """The result of a terminal's shell once that has ended."""
        return await done(handle.wait() if self.is_async else handle.wait(on_pty=output.append))


def pty_size(rows: int, cols: int) -> Any:
    from e2b.sandbox.commands.command_handle import PtySize

    return PtySize(rows=rows, cols=cols)


Check = Callable[[Run], Awaitable[None]]
CHECKS: dict[str, Check] = {}


def check(method: str) -> Callable[[Check], Check]:
    """Registers the check of a method."""

    def register(function: Check) -> Check:
        assert method not in CHECKS, method
        CHECKS[method] = function
        return function

    return register


async def fetched(url: str) -> bytes:
    """The body at a URL, nothing while there is an error."""

    def fetch() -> bytes:
        try:
            with urllib.request.urlopen(url, timeout=5) as got:
                body: bytes = got.read()
                return body
        except urllib.error.HTTPError:
            return b""

    return await asyncio.to_thread(fetch)
