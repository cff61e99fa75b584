"""The recorder is told what the gateway is told, and never holds a sandbox up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from sandgate.egress.client import EgressClient
from sandgate.egress.control import ControlServer
from sandgate.egress.table import SandboxEntry
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.recorder.client import Witnessed
from sandgate.recorder.directory import Directory

ADDRESS = IPv4Address("198.18.0.16")
ENTRY = SandboxEntry("box", ADDRESS, EgressPolicy())


@asynccontextmanager
async def listening(path: Path, directory: Directory) -> AsyncIterator[None]:
    """Something that is told of sandboxes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server = ControlServer(directory, IPv4Network("198.18.0.0/16"), {os.getuid()})
    serving = await server.serve(listener)
    try:
        yield
    finally:
        serving.close()
        path.unlink()


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


async def no_entries() -> list[SandboxEntry]:
    return []


async def one_entry() -> list[SandboxEntry]:
    return [ENTRY]


async def test_both_are_told(tmp_path: Path) -> None:
    paths = tmp_path / "egress.sock", tmp_path / "recorder.sock"
    known = Directory(), Directory()
    async with listening(paths[0], known[0]), listening(paths[1], known[1]):
        both = Witnessed(EgressClient(paths[0], no_entries), EgressClient(paths[1], no_entries))
        await both.start()
        await until(lambda: both._recorder.connected)
        await both.set(ENTRY)
        assert known[0].find(ADDRESS) == ENTRY
        await until(lambda: known[1].find(ADDRESS) == ENTRY)
        await both.remove(ADDRESS)
        assert len(known[0]) == 0
        await until(lambda: len(known[1]) == 0)
        await both.close()


async def test_without_a_recorder_nothing_waits_and_later_it_is_told_everything(
    tmp_path: Path,
) -> None:
    paths = tmp_path / "egress.sock", tmp_path / "recorder.sock"
    known = Directory()
    async with listening(paths[0], Directory()):
        both = Witnessed(EgressClient(paths[0], no_entries), EgressClient(paths[1], one_entry))
        await both.start()
        assert both.connected
        began = time.monotonic()
        for _ in range(20):
            await both.set(ENTRY)
        assert time.monotonic() - began < 5  # a wait for each would take longer
        async with listening(paths[1], known):
            await until(lambda: known.find(ADDRESS) == ENTRY)
            await both.close()


async def test_a_recorder_that_does_not_answer_holds_nothing_up(tmp_path: Path) -> None:
    paths = tmp_path / "egress.sock", tmp_path / "recorder.sock"
    silent = asyncio.Event()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"id": 1, "ok": true}\n')  # it knows of all there was
        await silent.wait()
        writer.close()

    async with listening(paths[0], Directory()):
        recorder = await asyncio.start_unix_server(listen, paths[1])
        both = Witnessed(EgressClient(paths[0], no_entries), EgressClient(paths[1], no_entries))
        await both.start()
        await until(lambda: both._recorder.connected)
        began = time.monotonic()
        for _ in range(20):
            await both.set(ENTRY)
        assert time.monotonic() - began < 5  # a wait for each would take longer
        silent.set()
        await both.close()
        recorder.close()


def test_who_had_an_address_last_is_known_after_the_end() -> None:
    directory = Directory()
    directory.set(ENTRY)
    other = SandboxEntry("next", ADDRESS, parse_policy(None, ["9.9.9.9"]))
    directory.retain([])
    assert len(directory) == 0 and directory.find(ADDRESS) == ENTRY
    directory.set(other)
    directory.remove(ADDRESS)
    assert directory.find(ADDRESS) == other
