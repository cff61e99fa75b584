"""A Sandgate node under test: started, used and ended through the `sandgate` command only."""

from __future__ import annotations

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from internet import namespaces, templates
from internet.held import Held
from sandgate.settings import load_settings

_READY_SECONDS = 30
_DOWN_SECONDS = 30


def sandgate_command() -> str:
    """The `sandgate` of the virtual environment that runs this."""
    return str(Path(sys.executable).parent / "sandgate")


class Node(Held):
    """A context manager: a node with a data directory of its own, ready when entered.

    `namespace` is the network namespace it runs in (None: the caller's). `settings` go into
    its TOML file (None: as if it were not set; the pool is small unless they say otherwise).
    `authority` is a CA certificate that its sandboxes trust. `launch` is put in front of every
    command.
    """

    def __init__(
        self,
        namespace: str | None = None,
        settings: Mapping[str, object] | None = None,
        authority: Path | None = None,
        launch: Sequence[str] = (),
    ) -> None:
        self.namespace = namespace
        self._authority = authority
        self.launch = tuple(launch)
        self.program: tuple[str, ...] = (sandgate_command(),)
        self.directory = Path(tempfile.mkdtemp(prefix=f"sgt{os.getpid()}-node-"))
        self.directory.chmod(0o755)  # the node's unprivileged processes pass through it
        self.data_dir = self.directory / "data"
        self.config = self.directory / "config.toml"
        self.log = self.directory / "node.log"
        wanted = {"data_dir": str(self.data_dir), "pool_size": 4, **(settings or {})}
        self._settings = {name: value for name, value in wanted.items() if value is not None}
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = True
        self._state_before = ""

    def open(self) -> None:
        """Set everything up; on entering."""
        self.prepare()
        self.start()

    def command(self, *arguments: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a subcommand with this node's configuration, where the node runs."""
        with self._place():
            return subprocess.run(
                [*self.launch, *self.program, *arguments, "--config", str(self.config)],
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
                env=_clean_environment(),
            )

    def environment(self) -> dict[str, str]:
        """What `sandgate env` tells a shell to export."""
        done = self.command("env")
        if done.returncode != 0:
            raise RuntimeError(f"sandgate env failed: {done.stderr}")
        words = [shlex.split(line) for line in done.stdout.splitlines()]
        pairs = [line[1].partition("=") for line in words if line[:1] == ["export"]]
        return {key: value for key, _, value in pairs}

    def stop(self) -> list[str]:
        """End the node by `sandgate down` and return what it left behind."""
        if self._stopped:
            return []
        self._stopped = True
        down = self.command("down", seconds=_DOWN_SECONDS + 10)
        left = [] if down.returncode == 0 else [f"sandgate down failed: {down.stderr}"]
        if self._process is not None and not _ends(self._process):
            left.append("`sandgate serve` went on after `sandgate down`")
            self._process.terminate()
            if not _ends(self._process):
                self._process.kill()
                self._process.wait()
        return left + self._leftovers()

    def close(self) -> None:
        """End the node, if `stop` has not, and remove its directory. May be called twice."""
        atexit.unregister(self.close)
        try:
            self.stop()
        finally:
            shutil.rmtree(self.directory, ignore_errors=True)

    def log_tail(self, characters: int = 4000) -> str:
        """The end of what the node printed."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def prepare(self) -> None:
        """Write the configuration, without starting anything."""
        atexit.register(self.close)
        self.data_dir.mkdir(exist_ok=True)
        templates.provide(self.data_dir / "templates", self._authority)
        lines = [f"{key} = {_toml(value)}" for key, value in self._settings.items()]
        self.config.write_text("\n".join(lines) + "\n")
        self._state_before = self._network_state()
        self._stopped = False

    def processes(self) -> set[int]:
        """The node's processes, those of its sandboxes included."""
        assert self._process is not None, "the node was not started here"
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            fields = "".join(_lines(path)).rpartition(")")[2].split()
            if fields:
                parents[int(path.parent.name)] = int(fields[1])
        found = {self._process.pid}
        while more := {child for child, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def start(self) -> None:
        """Have it serve; returns when it is ready. Raises RuntimeError."""
        with self.log.open("ab") as log, self._place():
            # The death signal ends the node even when the tests are killed outright.
            self._process = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "TERM", *self.launch),
                    *(*self.program, "serve", "--config", str(self.config)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_clean_environment(),
            )
        ready = self.command("status", "--wait", str(_READY_SECONDS), seconds=_READY_SECONDS + 10)
        if ready.returncode != 0:
            raise RuntimeError(
                f"the node is not ready: {ready.stdout}{ready.stderr}\n{self.log_tail()}"
            )

    def bury(self) -> None:
        """Wait for the end of the supervisor, which was killed; the node counts as not started."""
        assert self._process is not None, "the node was not started here"
        self._process.wait(_DOWN_SECONDS)
        self._process = None

    def _place(self) -> AbstractContextManager[None]:
        return nullcontext() if self.namespace is None else namespaces.inside(self.namespace)

    def _network_state(self) -> str:
        with self._place():
            return "\n".join(
                [
                    namespaces.run("ip", "-brief", "link"),
                    namespaces.run("ip", "-brief", "-4", "address"),
                    namespaces.run("ip", "rule"),
                    namespaces.run("ip", "-4", "route", "show", "table", "all"),
                    namespaces.run("nft", "list", "tables"),
                ]
            )

    def _leftovers(self) -> list[str]:
        """Processes, mounts, loop devices, cgroups, network set-up and run files."""
        marker = str(self.directory)
        left = [f"mount {line}" for line in _lines(Path("/proc/self/mountinfo")) if marker in line]
        left += [
            f"process {path.parent.name}: {command}"
            for path in Path("/proc").glob("[0-9]*/cmdline")
            if marker in (command := " ".join(_lines(path)).replace("\0", " "))
        ]
        left += [
            f"loop device {path.parent.parent.name}"
            for path in Path("/sys/block").glob("loop*/loop/backing_file")
            if marker in "".join(_lines(path))
        ]
        node_id = self.node_id
        left += [
            f"cgroup {name}/{child}"
            for name, children, _ in os.walk("/sys/fs/cgroup")
            for child in children
            if node_id in child
        ]
        run_dir = self.data_dir / "run"
        left += [f"file {path}" for path in run_dir.rglob("*")] if run_dir.is_dir() else []
        state = self._network_state()
        if state != self._state_before:
            left.append(f"network state was\n{self._state_before}\nand is\n{state}")
        return left

    @property
    def node_id(self) -> str:
        """What the names of the node's cgroups contain."""
        return load_settings(self.config).node_id


def _ends(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_DOWN_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def _clean_environment() -> dict[str, str]:
    """Without the settings of another node."""
    drop = ("SANDGATE_", "E2B_")
    return {key: value for key, value in os.environ.items() if not key.startswith(drop)}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
