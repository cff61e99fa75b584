"""A real launcher in a network namespace of its own, driven over its socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from sandgate.envd import EnvdConfig
from sandgate.policy import EgressPolicy
from sandgate.runtime import linux
from sandgate.runtime.client import LauncherClient
from sandgate.runtime.protocol import Launched, SandboxSpec
from sandgate.settings import Settings

TEMPLATES = Path(os.environ.get("SANDGATE_TEST_TEMPLATES", "/var/lib/sandgate/templates"))
TOKEN = "a-token"


@dataclass
class LauncherProcess:
    """The process and where it works."""

    namespace: str
    settings: Settings
    process: subprocess.Popen[str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    program: tuple[str, ...] = ("-m", "sandgate.runtime")

    @property
    def socket_path(self) -> Path:
        return self.settings.data_dir / "launcher.sock"

    def start(self) -> None:
        config = {
            "socket": str(self.socket_path),
            "settings": self.settings.model_dump(mode="json"),
            "https_port": 443,
            "gateway_uid": 65533,
            "upstream_dns": [],
            "node_layer": None,
        }
        command = ["ip", "netns", "exec", self.namespace, sys.executable, *self.program]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(config))
        self.process.stdin.close()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        status = self.process.wait(20)
        self.process = None
        return status

    def connect(self, address: IPv4Address, port: int) -> socket.socket:
        """A connection from the node's namespace, as HAProxy makes it."""
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        other = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        try:
            linux.setns(other, linux.CLONE_NEWNET)
            connection = socket.socket()
        finally:
            linux.setns(own, linux.CLONE_NEWNET)
            os.close(own)
            os.close(other)
        connection.settimeout(10)
        connection.connect((str(address), port))
        return connection


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LauncherProcess]:
    """A running launcher. At the end nothing of it may be left."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "templates").symlink_to(TEMPLATES)
    settings = Settings(data_dir=data, service_user="nobody", pool_size=1, disk_mb=256)
    namespace = f"sgtest{os.getpid()}"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
    launcher = LauncherProcess(namespace, settings)
    try:
        launcher.start()
        yield launcher
        if launcher.process is not None:
            assert launcher.stop() == 0
        assert left_of(launcher) == {}
    finally:
        if launcher.process is not None:
            launcher.process.kill()
            launcher.process.wait()
        subprocess.run(["ip", "netns", "del", namespace], check=True)


def backing_files() -> list[str]:
    """The files behind the machine's loop devices; others' may go while this looks."""
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found


def left_of(launcher: LauncherProcess) -> dict[str, list[str]]:
    """What a stopped launcher has left on the machine, by kind."""
    node = launcher.settings.node_id
    links = subprocess.run(
        ["ip", "-n", launcher.namespace, "-o", "link"], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    tables = subprocess.run(
        ["ip", "netns", "exec", launcher.namespace, "nft", "list", "tables"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    found = {
        "groups": [  # not **: groups of other nodes come and go meanwhile
            str(path)
            for above in ("", "*/")
            for path in Path("/sys/fs/cgroup").glob(f"{above}sandgate/{node}")
        ],
        "links": [line for line in links if " sg" in line],
        "tables": tables,
        "cells": [path.name for path in (launcher.settings.data_dir / "cells").iterdir()],
        "loops": [text for text in backing_files() if str(launcher.settings.data_dir) in text],
        "mounts": [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if str(launcher.settings.data_dir) in line
        ],
    }
    return {kind: items for kind, items in found.items() if items}


@pytest.fixture
async def client(launcher: LauncherProcess) -> AsyncIterator[LauncherClient]:
    """A connected client that keeps the exits it hears of in `client.exits`."""
    exits: asyncio.Queue[str] = asyncio.Queue()
    client = LauncherClient(launcher.socket_path, exits.put)
    client.exits = exits  # type: ignore[attr-defined]  # for the tests alone
    await client.start()
    yield client
    await client.close()


@dataclass
class Sandbox:
    """A started sandbox and how to run something in it."""

    launched: Launched
    launcher: LauncherProcess

    def run(self, command: str, user: str = "root") -> tuple[int, str]:
        """Run a shell command through envd; (exit code, everything it printed)."""
        connection = self.launcher.connect(self.launched.address, 49983)
        request = {"process": {"cmd": "/bin/bash", "args": ["-l", "-c", command]}, "stdin": False}
        body = json.dumps(request).encode()
        http_connection = http.client.HTTPConnection(str(self.launched.address))
        http_connection.sock = connection
        with contextlib.closing(http_connection):
            http_connection.request(
                "POST",
                "/process.Process/Start",
                struct.pack(">BI", 0, len(body)) + body,
                {
                    "Content-Type": "application/connect+json",
                    "Connect-Protocol-Version": "1",
                    "X-Access-Token": TOKEN,
                    "Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode(),
                },
            )
            return _outcome(http_connection.getresponse().read())


def _outcome(stream: bytes) -> tuple[int, str]:
    output, code = b"", -2
    while stream:
        _, length = struct.unpack(">BI", stream[:5])
        event = json.loads(stream[5 : 5 + length]).get("event", {})
        stream = stream[5 + length :]
        for data in event.get("data", {}).values():
            output += base64.b64decode(data)
        if "end" in event:
            code = event["end"].get("exitCode", 0)
    return code, output.decode()


Start = Callable[..., Any]


@pytest.fixture
def start(launcher: LauncherProcess, client: LauncherClient) -> Start:
    """Start a sandbox: `await start("name", memory_mb=…, policy=…)`."""

    async def start(sandbox_id: str = "itest", **changes: Any) -> Sandbox:
        fields: dict[str, Any] = {
            "template": "base",
            "cpu_count": 1,
            "memory_mb": 256,
            "disk_mb": 256,
            "max_pids": 100,
            "policy": EgressPolicy(),
            **changes,
        }
        on_address = fields.pop("on_address", None)
        spec = SandboxSpec(sandbox_id=sandbox_id, **fields)
        config = EnvdConfig(sandbox_id, "base", TOKEN, {})
        return Sandbox(await client.create(spec, config, on_address), launcher)

    return start
