"""A node of the `sandgate` command, in a network namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from faults.machine import node_groups
from internet import namespaces
from internet.templates import built_templates
from sandgate.settings import Settings
from sandgate.supervisor.processes import ProcessId

COMPONENTS = ["launcher", "egress", "recorder", "haproxy", "control"]


class Home:
    """A data directory and the namespace that its node runs in."""

    def __init__(self, directory: Path, namespace: str) -> None:
        self.directory = directory
        self.namespace = namespace
        self.data = directory / "data"
        self.config = directory / "config.toml"
        self.data.mkdir()
        (self.data / "templates").symlink_to(built_templates())
        self.config.write_text(
            f'data_dir = "{self.data}"\nupstream_dns = ["192.0.2.53"]\n'
            "memory_mb = 256\ndisk_mb = 256\npool_size = 1\n"
        )

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SANDGATE_", "E2B_"))}
        return {**kept, "SANDGATE_CONFIG": str(self.config)}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        with namespaces.inside(self.namespace):
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
                env={**self.environment(), **more},
            )

    def sandgate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "sandgate", *arguments)

    def python(self, code: str, **more: str) -> str:
        done = self.run(sys.executable, "-c", code, **more)
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout.strip()

    def status(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.sandgate("status", "--json").stdout)
        return data

    def processes(self) -> dict[str, ProcessId]:
        record = json.loads((self.data / "run" / "node.json").read_text())
        pids = {row["name"]: row["pid"] for row in record["components"]}
        pids["supervisor"] = record["supervisor"]["pid"]
        found = {name: ProcessId.of(pid) for name, pid in pids.items()}
        return {name: process for name, process in found.items() if process is not None}

    def log(self) -> str:
        path = self.data / "log" / "node.log"
        return path.read_text() if path.exists() else ""

    def groups(self) -> list[Path]:
        """The node's control groups."""
        return node_groups(Settings(data_dir=self.data).node_id)

    def leftovers(self) -> list[str]:
        """What a stopped node must not leave. A new network namespace has nothing of it."""
        tables = namespaces.run("ip", "netns", "exec", self.namespace, "nft", "list", "tables")
        links = namespaces.run("ip", "-n", self.namespace, "-brief", "link").splitlines()
        addresses = namespaces.run("ip", "-n", self.namespace, "-4", "-brief", "addr")
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        return [
            *tables.splitlines(),
            *(line for line in links if line.startswith("sg")),
            *(["addresses on lo"] if "198.18." in addresses else []),
            *(line for line in mounts if str(self.directory) in line),
            *map(str, (self.data / "cells").glob("*")),
            *map(str, self.data.glob("run")),
            *map(str, self.groups()),
        ]


def up(home: Home) -> None:
    done = home.sandgate("up")
    assert done.returncode == 0, done.stderr


def one_message(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1, done.stdout
    for part in parts:
        assert part in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Error") == 1
