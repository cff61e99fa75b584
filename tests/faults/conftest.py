"""A node that is killed in parts, what it runs, and a client that keeps asking."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

COMPONENTS = ("control", "launcher", "egress", "haproxy", "recorder")
HELPERS = "helpers"
"""What the launcher has beside it: the process that sandboxes are forked from, zygotes, copiers."""
SUPERVISOR = "supervisor"
_HERE = Path(__file__).parent


class Client:
    """`driver.py` in the node's namespace."""

    def __init__(self, node: Node, **environment: str) -> None:
        assert node.namespace is not None
        drop = ("E2B_", "SANDGATE_", "SSL_CERT")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
        with namespaces.inside(node.namespace):
            self._process = subprocess.Popen(
                [sys.executable, str(_HERE / "driver.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={
                    **inherited,
                    **node.environment(),
                    **environment,
                    "PYTHONPATH": str(_HERE.parent),
                },
            )

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Have the driver do something. Raises AssertionError with what went wrong there."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the driver ended during {name}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def close(self) -> None:
        """End the driver."""
        self._process.kill()
        self._process.communicate()


class Killer:
    """Kills components of a node with SIGKILL, by the pids that the node's record has."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._record = node.data_dir / "run" / "node.json"

    def pids(self) -> dict[str, int]:
        """The components that run now."""
        rows = json.loads(self._record.read_text())["components"]
        return {row["name"]: row["pid"] for row in rows if row["pid"] is not None}

    def kill(self, *names: str) -> None:
        """Kill, all at once."""
        pids = self.pids()
        victims = [pids[name] for name in names if name in pids]
        if HELPERS in names:
            victims += _helpers(pids["launcher"])
        if SUPERVISOR in names:
            victims.insert(0, json.loads(self._record.read_text())["supervisor"]["pid"])
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if SUPERVISOR in names:
            self._node.bury()
            self._node.start()  # as a service manager does

    def settled(self) -> bool:
        """Whether all components run."""
        return all(
            name in (pids := self.pids()) and Path(f"/proc/{pids[name]}").exists()
            for name in COMPONENTS
        )


def _helpers(launcher: int) -> list[int]:
    """The launcher's children, without the sandboxes of another launcher that it got."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    own = Path(f"/proc/{launcher}/ns/pid").readlink()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/ns/pid").readlink() == own]


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with Internet() as internet:
        yield internet


@pytest.fixture(scope="module")
def node(world: Internet) -> Iterator[Node]:
    limits = {"cpu_count": 1, "memory_mb": 256, "disk_mb": 256, "max_pids": 128}
    settings = {"upstream_dns": [UPSTREAM_DNS], **limits}
    with Node(world.attach("node"), settings, authority=world.ca_file) as node:
        yield node
        left = node.stop()
        log = node.log_tail()
    assert not left, "the node left behind:\n" + "\n".join(left) + f"\n{log}"


@pytest.fixture
def client(node: Node) -> Iterator[Client]:
    client = Client(node)
    yield client
    client.close()


@pytest.fixture
def killer(node: Node) -> Killer:
    return Killer(node)


def until(condition: Any, seconds: float, what: str) -> float:
    """Wait for `condition()`; returns how long it took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begun


def processor_seconds(pid: int) -> float:
    """What a process has used, of user and kernel time."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
