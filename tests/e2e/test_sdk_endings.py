"""A sandbox that is ended by somebody else: whoever uses it hears of it at once, and why."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from e2b import AsyncSandbox, PtySize, Sandbox, SandboxNotRunningException, TimeoutException

from e2e.box import until

AT_ONCE = 2.0
"""Seconds; generous, since the machine may be busy."""
Make = Callable[..., Sandbox]

KILLED = (SandboxNotRunningException, TimeoutException)


class EndlessFile:
    """A file that is read slowly, and has no end."""

    def read(self, size: int = -1) -> bytes:
        time.sleep(0.02)
        return b"x" * min(65536, size if size > 0 else 65536)


def wait_for_command(sandbox: Sandbox, begun: threading.Event) -> object:
    handle = sandbox.commands.run("echo up; sleep 1000", background=True, timeout=0)
    return handle.wait(on_stdout=lambda _: begun.set())


def print_endlessly(sandbox: Sandbox, begun: threading.Event) -> object:
    return sandbox.commands.run("yes", timeout=0, on_stdout=lambda _: begun.set())


def wait_for_terminal(sandbox: Sandbox, begun: threading.Event) -> object:
    handle = sandbox.pty.create(PtySize(24, 80), timeout=0)
    return handle.wait(on_pty=lambda _: begun.set())


def upload(sandbox: Sandbox, begun: threading.Event) -> object:
    begun.set()
    return sandbox.files.write("endless", EndlessFile())  # type: ignore[arg-type]  # has read()


def poll_directory(sandbox: Sandbox, begun: threading.Event) -> None:
    watch = sandbox.files.watch_dir("/home/user")
    while True:
        watch.get_new_events()
        begun.set()
        time.sleep(0.02)


USES = [wait_for_command, print_endlessly, wait_for_terminal, upload, poll_directory]


@pytest.mark.parametrize("ending", ["kill", "timeout"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
def test_a_sandbox_that_ends_is_reported_at_once(
    sandboxes: Make, use: Callable[[Sandbox, threading.Event], Any], ending: str
) -> None:
    sandbox, begun = sandboxes(timeout=100), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        using = threads.submit(use, sandbox, begun)
        assert begun.wait(10)
        time.sleep(0.2)
        if ending == "kill":
            assert Sandbox.kill(sandbox.sandbox_id)
        else:
            Sandbox.set_timeout(sandbox.sandbox_id, 0)
        ended = time.monotonic()
        error = using.exception(20)
        assert isinstance(error, KILLED), repr(error)
        assert time.monotonic() - ended < AT_ONCE
    assert not sandbox.is_running()


def test_a_download_in_flight_breaks_off(sandboxes: Make) -> None:
    sandbox = sandboxes()
    sandbox.commands.run("head -c 200M /dev/zero >big")
    received = 0
    stream = iter(sandbox.files.read("big", format="stream"))
    next(stream)
    assert Sandbox.kill(sandbox.sandbox_id)
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError, *KILLED)):
        for part in stream:
            received += len(part)
    assert received < 100 << 20, "what was under way already"


async def test_asynchronous_users_hear_of_it_at_once(node: object) -> None:
    sandbox = await AsyncSandbox.create(timeout=100)
    over: list[Exception | None] = []
    await sandbox.files.watch_dir(
        "/home/user", on_event=lambda _: None, on_exit=over.append, timeout=0
    )
    tasks = [asyncio.create_task(sandbox.commands.run("sleep 1000", timeout=0)) for _ in range(10)]
    await asyncio.sleep(0.5)
    assert await AsyncSandbox.kill(sandbox.sandbox_id)
    ended = time.monotonic()
    errors = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
    assert all(isinstance(error, KILLED) for error in errors), errors
    while not over and time.monotonic() - ended < AT_ONCE:  # noqa: ASYNC110 - polls
        await asyncio.sleep(0.02)
    assert isinstance(over[0], KILLED)
    assert time.monotonic() - ended < AT_ONCE
    assert not await sandbox.is_running()


def test_others_go_on(sandboxes: Make) -> None:
    one, two = sandboxes(), sandboxes()
    command = two.commands.run("sleep 1; echo done", background=True)
    one.kill()
    assert command.wait().stdout == "done\n"


def test_a_paused_sandbox_is_reported_at_once_too(sandboxes: Make) -> None:
    sandbox = sandboxes()
    with ThreadPoolExecutor(1) as threads:
        using = threads.submit(lambda: sandbox.commands.run("sleep 1000", timeout=0))
        until(lambda: "sleep" in str(sandbox.commands.list()))
        Sandbox.pause(sandbox.sandbox_id)
        assert isinstance(using.exception(AT_ONCE), KILLED)
    assert not sandbox.is_running()
