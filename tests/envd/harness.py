"""A running daemon, and clients that speak to it in plain HTTP."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from envd import launcher
from sandgate.envd import EnvdConfig

TOKEN = "a-token-that-no-one-guesses"
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Daemon:
    """A daemon in a root file system of its own."""

    url: str
    config: EnvdConfig
    pid: int
    """As the test sees it; the daemon itself sees 1."""

    @property
    def root(self) -> Path:
        """Its root file system, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def client(self, token: str | bytes | None = TOKEN) -> httpx.Client:
        headers: dict[bytes, bytes] = {}
        if token is not None:
            headers[b"X-Access-Token"] = token if isinstance(token, bytes) else token.encode()
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False)


@contextmanager
def running(directory: Path, config: EnvdConfig | None = None) -> Iterator[Daemon]:
    """Start a daemon; end it and all in it at the end."""
    config = config or EnvdConfig("isandbox", "base", TOKEN, {"FROM_CREATE": "yes"})
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        port = listener.getsockname()[1]
        # `pass_fds` keeps numbers, and the program expects the socket at a fixed one.
        shift = f'exec {launcher.LISTENER}<&{listener.fileno()}; exec "$@"'
        process = subprocess.Popen(
            ["bash", "-c", shift, "-", sys.executable, launcher.__file__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            text=True,
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        print(config.to_json(), file=process.stdin, flush=True)
        lines = sorted(process.stdout.readline().strip() for _ in range(2))
        assert lines[1] == "ready", "the daemon did not start"
        yield Daemon(f"http://127.0.0.1:{port}", config, int(lines[0]))
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(20)


def frame(message: Json, flags: int = 0) -> bytes:
    payload = json.dumps(message).encode()
    return struct.pack(">BI", flags, len(payload)) + payload


def frames(chunks: Iterator[bytes]) -> Iterator[tuple[int, Json]]:
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 5:
            flags, size = struct.unpack_from(">BI", buffer)
            if len(buffer) < 5 + size:
                break
            yield flags, json.loads(buffer[5 : 5 + size])
            del buffer[: 5 + size]
    assert not buffer, "the stream ended within a frame"


def unary(client: httpx.Client, method: str, message: Json, **headers: str) -> httpx.Response:
    url = f"/{'process.Process' if method in _PROCESS else 'filesystem.Filesystem'}/{method}"
    return client.post(url, json=message, headers=headers)


_PROCESS = {"List", "Update", "SendInput", "SendSignal", "CloseStdin"}


def basic(user: str) -> str:
    return "Basic " + b64encode(f"{user}:".encode()).decode()


class Stream:
    """An open server stream."""

    def __init__(self, response: httpx.Response) -> None:
        assert response.status_code == 200, response.read()
        assert response.headers["Content-Type"] == "application/connect+json"
        self._frames = frames(response.iter_raw())
        self.end: Json | None = None

    def __iter__(self) -> Iterator[Json]:
        for flags, message in self._frames:
            if flags & 2:
                assert self.end is None
                self.end = message
            else:
                yield message
        assert self.end is not None, "the final frame is missing"

    def event(self) -> Json:
        """The next message; its `event` if it has one."""
        message = next(iter(self))
        return dict(message.get("event", message))

    def rest(self) -> list[Json]:
        return [dict(message.get("event", message)) for message in self]


@contextmanager
def stream(client: httpx.Client, method: str, message: Json, **headers: str) -> Iterator[Stream]:
    service = "filesystem.Filesystem" if method == "WatchDir" else "process.Process"
    with client.stream(
        "POST",
        f"/{service}/{method}",
        content=frame(message),
        headers={"Content-Type": "application/connect+json", **headers},
    ) as response:
        yield Stream(response)


def start(script: str, **process: Any) -> Json:
    """A `Start` request for a shell command, as the SDKs send it."""
    return {
        "process": {"cmd": "/bin/bash", "args": ["-l", "-c", script], **process},
        "stdin": False,
    }


@dataclass(slots=True)
class Outcome:
    """All of a finished command."""

    pid: int
    stdout: bytes
    stderr: bytes
    pty: bytes
    exit_code: int
    end: Json
    error: Json | None


def outcome(opened: Stream) -> Outcome:
    events = opened.rest()
    data: dict[str, list[bytes]] = {"stdout": [], "stderr": [], "pty": []}
    end: Json = {}
    pid = 0
    for event in events:
        pid = event.get("start", {}).get("pid", pid)
        end = event.get("end", end)
        for channel, text in event.get("data", {}).items():
            data[channel].append(b64decode(text))
    assert opened.end is not None
    exit_code = end.get("exitCode", 0)
    joined = {channel: b"".join(parts) for channel, parts in data.items()}
    return Outcome(pid, **joined, exit_code=exit_code, end=end, error=opened.end.get("error"))


def run(client: httpx.Client, request: Json, **headers: str) -> Outcome:
    """Start a command and wait for its end."""
    with stream(client, "Start", request, **headers) as opened:
        return outcome(opened)


def pid_selector(pid: int) -> Json:
    return {"process": {"pid": pid}}


def stdin(text: bytes) -> Json:
    return {"stdin": b64encode(text).decode()}
