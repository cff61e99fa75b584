"""Uses the daemon once before it is forked.

What runs for the first time writes to memory: specialised bytecode, caches, compiled expressions.
Done once in the launcher, these pages stay shared with every sandbox (measured: 6.5 MB of private
memory in place of 7.5), and a sandbox's first command is as fast as its second.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket

from sandgate.envd.blank import Blank
from sandgate.envd.config import EnvdConfig
from sandgate.envd.connect import encode_frame
from sandgate.envd.metrics import Measure

_ROUNDS = 10  # CPython specialises a function's bytecode after about eight calls
_TOKEN = "warm-up"  # noqa: S105 - of a daemon that only the lines below can reach
_START = encode_frame(
    b'{"process": {"cmd": "/bin/sh", "args": ["-c", "echo"], "envs": {"A": "b"}}, "stdin": false}'
)
_REQUESTS = (
    ("GET", "/health", b""),
    ("GET", "/files?path=/etc/hostname", b""),
    ("GET", "/metrics", b""),
    ("GET", "/nowhere", b""),
    ("POST", "/process.Process/Start", _START),
    ("POST", "/process.Process/List", b"{}"),
    ("POST", "/process.Process/SendSignal", b'{"process": {"pid": 0}}'),
    ("POST", "/filesystem.Filesystem/Stat", b'{"path": "/"}'),
    ("POST", "/filesystem.Filesystem/ListDir", b'{"path": "/"}'),
)


def warm_up() -> None:
    """Serve a few requests over a socket pair. Writes no file; runs `/bin/sh -c echo` as root."""
    directory = os.getcwd()
    try:
        asyncio.run(_serve_and_ask())
    finally:
        os.chdir(directory)


async def _serve_and_ask() -> None:
    daemon = Blank()
    daemon.identity.assume(EnvdConfig("warm-up", "none", _TOKEN, {}, default_user="root"))
    daemon.gauge = functools.partial(Measure, 0, 1, 0, 0, 1)
    daemon.processes.open(0)
    app = daemon.server
    await app.setup()
    assert app.server is not None
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.connect_accepted_socket(app.server, theirs)
    reader, writer = await asyncio.open_connection(sock=ours)
    try:
        for _ in range(_ROUNDS):
            for method, path, body in _REQUESTS:
                writer.write(_request(method, path, body))
                await _skip_response(reader)
    finally:
        writer.close()
        await app.cleanup()


def _request(method: str, path: str, body: bytes) -> bytes:
    fields = {
        "Host": "localhost",
        "X-Access-Token": _TOKEN,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connect-Timeout-Ms": "5000",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


async def _skip_response(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    while b"transfer-encoding: chunked" in head:
        size = int(await reader.readuntil(b"\r\n"), 16)
        await reader.readexactly(size + 2)
        if size == 0:
            return
