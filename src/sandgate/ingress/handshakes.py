"""Ends connections of clients that do not finish their TLS handshake.

HAProxy (seen with 2.6) has no limit for that but the one for idle clients, which is hours. So the
door puts each connection that it passes on into a table, the entry marks it there once its
handshake is finished, and what is found unmarked twice is ended over the Runtime API.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

_NAME = "handshakes"
TABLE = (
    "# Client connections by address and port; 1: the TLS handshake is finished.",
    "stick-table type string len 24 size 64k expire 10s store gpt0",
)
"""Lines of the table's backend. Connections stay in it for as long as they are open."""

_AT_ONCE = 100
"""Commands in one line, which HAProxy has one buffer for."""


def begun() -> list[str]:
    """Rules of the door for a connection that showed a ClientHello.

    An earlier one from the same port, still in the table, may have finished.
    """
    return _mark("content", 2, finished=False)


def finished() -> list[str]:
    """Rules of the entry, which come after the handshake."""
    return _mark("session", 0, finished=True)


def _mark(rules: str, counter: int, *, finished: bool) -> list[str]:
    """`counter` is one of three that a connection has; others of them are used for other tables."""
    return [
        f"tcp-request {rules} set-var(sess.port) src_port",
        f"tcp-request {rules} track-sc{counter} src,concat(:,sess.port) table {_NAME}",
        f"tcp-request {rules} sc-set-gpt0({counter}) {int(finished)}",
    ]


async def end_unfinished(socket: Path, before: set[str]) -> set[str]:
    """End what has not finished its handshake since `before`, which an earlier call returned.

    Raises OSError.
    """
    unfinished = {
        words["key"]
        async for _, words in _ask(socket, f"show table {_NAME} data.gpt0 lt 1")
        if words.get("use", "0") != "0" and "key" in words
    }
    if stuck := unfinished & before:
        streams = [
            stream
            async for stream, words in _ask(socket, "show sess")
            if words.get("src") in stuck and words.get("fe", "").endswith("_door")
        ]
        for start in range(0, len(streams), _AT_ONCE):
            ends = (f"shutdown session {one}" for one in streams[start : start + _AT_ONCE])
            async for _ in _ask(socket, ";".join(ends)):
                pass
    return unfinished


async def _ask(socket: Path, command: str) -> AsyncIterator[tuple[str, dict[str, str]]]:
    """The rows of an answer: their ids, and their words of the form `name=value`."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        writer.write(f"{command}\n".encode())
        async for line in reader:
            number, _, rest = line.decode("ascii", "replace").partition(": ")
            pairs = (word.partition("=") for word in rest.split())
            yield number, {name: value for name, _, value in pairs}
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
