"""A node whose program is replaced while sandboxes run."""

from __future__ import annotations

import contextlib
import shutil
import signal
import site
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandgate
from internet import namespaces
from supervisor.home import COMPONENTS, Home, up

pytestmark = pytest.mark.timeout(180)

_CREATE = """
from e2b import Sandbox
print(Sandbox.create(timeout=300, metadata={"kept": "yes"}).sandbox_id)
"""

# Counts until it is told to stop; ends with status 7.
_STREAM = """
import os
from e2b import CommandExitException, Sandbox
sandbox = Sandbox.connect(os.environ["ID"])
count = "i=0; while [ ! -e /tmp/stop ]; do echo $i; i=$((i+1)); sleep 0.05; done; exit 7"
try:
    sandbox.commands.run(count, on_stdout=lambda text: print(text, end="", flush=True), timeout=0)
except CommandExitException as error:
    print("status", error.exit_code)
"""

_AFTER = """
import os
from e2b import Sandbox
sandbox = Sandbox.connect(os.environ["ID"])
assert sandbox.get_info().metadata == {"kept": "yes"}
assert sandbox.commands.run("echo as before").stdout == "as before\\n"
with Sandbox.create() as other:
    print(other.commands.run("echo new").stdout)
sandbox.files.write("/tmp/stop", "")
"""


@pytest.fixture
def another(home: Home) -> Path:
    """The Python of another checkout, which is a copy of this one."""
    copy = home.directory / "checkout"
    shutil.copytree(Path(sandgate.__file__).parent, copy / "src" / "sandgate")
    venv.create(copy / ".venv")
    (packages,) = (copy / ".venv" / "lib").glob("python*/site-packages")
    own = [path for path in site.getsitepackages() if path.startswith(sys.prefix)]
    (packages / "copy.pth").write_text("\n".join([str(copy / "src"), *own]) + "\n")
    return copy / ".venv" / "bin" / "python"


class Stream:
    """A command of a sandbox whose output an SDK is reading."""

    def __init__(self, home: Home, environment: dict[str, str]) -> None:
        self.out = home.directory / "stream"
        with self.out.open("wb") as out, namespaces.inside(home.namespace):
            self.process = subprocess.Popen(
                [sys.executable, "-c", _STREAM],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**home.environment(), **environment},
            )

    def numbers(self) -> list[str]:
        return self.out.read_text().split()

    def await_more(self) -> None:
        before, deadline = len(self.numbers()), time.monotonic() + 20
        while len(self.numbers()) < before + 3:
            assert time.monotonic() < deadline, self.out.read_text()[-2000:]
            time.sleep(0.02)


@contextlib.contextmanager
def running(home: Home, environment: dict[str, str]) -> Iterator[Stream]:
    stream = Stream(home, environment)
    try:
        stream.await_more()
        yield stream
    finally:
        stream.process.kill()
        stream.process.wait()


def environment_of(home: Home) -> dict[str, str]:
    lines = home.sandgate("env").stdout.splitlines()
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def check_stream(stream: Stream) -> None:
    """Nothing is missing, and the end is the command's own."""
    assert stream.process.wait(20) == 0
    *numbers, word, status = stream.numbers()
    assert (word, status) == ("status", "7")
    assert numbers == [str(number) for number in range(len(numbers))]


def test_another_checkout_takes_over_and_output_goes_on(home: Home, another: Path) -> None:
    up(home)
    environment = environment_of(home)
    name = home.python(_CREATE, **environment)
    before = home.processes()
    environment["ID"] = name
    with running(home, environment) as stream:
        done = home.run(str(another), "-m", "sandgate", "up")
        assert done.returncode == 0, done.stderr + home.log()
        assert "has taken over, with all sandboxes" in done.stdout
        stream.await_more()
        after = home.processes()
        assert set(after) == {*COMPONENTS, "supervisor"}
        assert not set(after.values()) & set(before.values())
        command = Path(f"/proc/{after['control'].pid}/cmdline").read_bytes().split(b"\0")[0]
        assert command == bytes(another)
        # The proxy of before serves the stream, and nothing else of before is left.
        alive = [part for part, process in before.items() if process.alive()]
        assert alive == ["haproxy"]
        assert home.python(_AFTER, **environment) == "new"
        check_stream(stream)
        wait_for_end(before)
    assert "was up already" in home.run(str(another), "-m", "sandgate", "up").stdout
    assert home.run(str(another), "-m", "sandgate", "down").returncode == 0
    assert not home.leftovers()


def wait_for_end(processes: dict[str, Any]) -> None:
    deadline = time.monotonic() + 20
    while alive := [name for name, process in processes.items() if process.alive()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


@pytest.mark.long
def test_a_restart_by_the_service_manager_keeps_sandboxes_and_streams(home: Home) -> None:
    """As the unit does: SIGUSR1 ends the node, and `serve` starts it again."""
    up(home)
    environment = environment_of(home)
    environment["ID"] = home.python(_CREATE, **environment)
    before = home.processes()
    with running(home, environment) as stream:
        before["supervisor"].send(signal.SIGUSR1)
        assert before["supervisor"].wait(30)
        assert [part for part, process in before.items() if process.alive()] == ["haproxy"]
        assert home.sandgate("status").returncode == 3
        stream.await_more()
        up(home)
        assert home.python(_AFTER, **environment) == "new"
        check_stream(stream)
        wait_for_end(before)


@pytest.mark.long
def test_settings_that_changed_hold_after_a_restart_in_place(home: Home) -> None:
    up(home)
    environment = environment_of(home)
    environment["ID"] = home.python(_CREATE, **environment)
    home.config.write_text(home.config.read_text().replace("memory_mb = 256", "memory_mb = 128"))
    done = home.sandgate("up", "--restart")
    assert done.returncode == 0, done.stderr
    sizes = """
import os
from e2b import Sandbox
with Sandbox.create() as new:
    print(Sandbox.connect(os.environ["ID"]).get_info().memory_mb, new.get_info().memory_mb)
"""
    assert home.python(sizes, **environment) == "256 128"
    # What drained proxies there are ends with the node.
    old = home.processes()["haproxy"]
    with running(home, environment):
        assert home.sandgate("up", "--restart").returncode == 0
        assert old.alive()
        assert home.sandgate("down").returncode == 0
        assert not old.alive()
    assert not home.leftovers()


def test_a_node_of_a_service_manager_or_a_newer_version_is_left_alone(home: Home) -> None:
    up(home)
    record = home.data / "run" / "node.json"
    before, text = home.processes(), record.read_text()
    for change, words in (
        ('"managed":true', "systemctl restart sandgate"),
        ('"version":"99.1"', "a newer version"),
    ):
        field = change.partition(":")[0]
        value = text.partition(f"{field}:")[2].split(",")[0]
        record.write_text(text.replace(f"{field}:{value}", change))
        done = home.sandgate("up", "--restart")
        assert done.returncode == 1 and words in done.stderr, done.stderr
        assert home.processes() == before
