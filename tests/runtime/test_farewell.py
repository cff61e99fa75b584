"""Who has a stream open into a sandbox is told why it ends, before it does."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.conftest import TOKEN, Sandbox, Start
from sandgate.envd.signals import ENDING_SIGNAL, PAUSING_SIGNAL
from sandgate.runtime.client import LauncherClient

ENVD = 49983


class Stream:
    """A command's stream: `yes` or one that is silent."""

    def __init__(self, sandbox: Sandbox, command: str) -> None:
        self._connection = http.client.HTTPConnection("unused")
        self._connection.sock = sandbox.launcher.connect(sandbox.launched.address, ENVD)
        request = {"process": {"cmd": "/bin/sh", "args": ["-c", command]}, "stdin": False}
        body = json.dumps(request).encode()
        # As the ingress asks: a connection for each request.
        headers = {
            "Content-Type": "application/connect+json",
            "X-Access-Token": TOKEN,
            "Connection": "close",
        }
        message = struct.pack(">BI", 0, len(body)) + body
        self._connection.request("POST", "/process.Process/Start", message, headers)
        self.response = self._connection.getresponse()

    def frames(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Flags and message of each, to the end of the stream."""
        while head := self.response.read(5):
            flags, length = struct.unpack(">BI", head)
            yield flags, json.loads(self.response.read(length))

    def close(self) -> None:
        self.response.close()
        self._connection.close()


async def end(client: LauncherClient, way: str) -> None:
    """What may happen to `iended`, and be undone."""
    await {"kill": client.kill, "pause": client.pause, "park": client.park}[way]("iended")


TEXTS = {
    "kill": "The sandbox was killed or reached its end of life",
    "pause": "The sandbox was paused",
    "park": "The sandbox was paused",
}


@pytest.mark.parametrize("way", TEXTS)
async def test_open_streams_end_with_the_reason(
    start: Start, client: LauncherClient, way: str
) -> None:
    sandbox = await start("iended")
    with contextlib.closing(Stream(sandbox, "echo up; exec sleep 1000")) as stream:
        frames = stream.frames()
        assert [next(frames)[0], next(frames)[0]] == [0, 0]
        await end(client, way)
        assert list(frames) == [(2, {"error": {"code": "unavailable", "message": TEXTS[way]}})]
    await client.kill("iended")


async def test_who_does_not_read_is_not_waited_for(start: Start, client: LauncherClient) -> None:
    sandbox = await start("iended")
    with contextlib.closing(Stream(sandbox, "yes")) as stream:
        next(stream.frames())
        await asyncio.sleep(0.3)  # all buffers are full
        begun = time.monotonic()
        await end(client, "kill")
        assert time.monotonic() - begun < 3
    assert await client.running() == []


async def test_a_daemon_that_does_not_listen_is_not_waited_for(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("iended")
    with contextlib.closing(Stream(sandbox, "echo up; exec sleep 1000")) as stream:
        next(stream.frames())
        os.kill(sandbox.launched.pid, signal.SIGSTOP)
        await end(client, "kill")
    assert await client.running() == []


async def test_a_pause_that_is_resumed_at_once_is_off_or_done(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("iended")
    with contextlib.closing(Stream(sandbox, "yes")) as stream:
        next(stream.frames())
        pause = asyncio.create_task(client.pause("iended"))
        await asyncio.sleep(0.02)
        await client.resume("iended")
        with contextlib.suppress(Exception):  # refused, if the resume was first
            await pause
        await client.resume("iended")
    assert sandbox.run("echo on") == (0, "on\n")
    assert [item.paused for item in await client.running()] == [False]


async def test_root_in_the_sandbox_can_only_end_its_own_streams(
    start: Start, client: LauncherClient
) -> None:
    sandbox = await start("iended")
    for number in (ENDING_SIGNAL, PAUSING_SIGNAL):
        sandbox.run(f"kill -{number} 1")
        assert sandbox.run("echo on") == (0, "on\n")
    await client.kill("iended")
