"""Components that are started before their turn, and wait for their configuration."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sandgate.supervisor import component
from sandgate.supervisor.component import Child, Component
from sandgate.supervisor.processes import ProcessId, read_pid_file

pytestmark = pytest.mark.timeout(60)

LARGE = os.urandom(3 << 20)
"""Many times what a socket holds."""
PATIENCE = 20.0

_PRELUDE = """
import hashlib, os, pathlib, signal, sys, time
directory = pathlib.Path(sys.argv[1])
def tell(name, text):
    (directory / "new").write_text(text)
    (directory / "new").rename(directory / name)
"""
READS = (
    _PRELUDE
    + """
tell("loaded", str(os.getpid()))
read = sys.stdin.buffer.read()
tell("read", f"{len(read)} {hashlib.sha256(read).hexdigest()}")
time.sleep(60)
"""
)
READS_LATE = READS.replace(
    "read =", "while not (directory / 'go').exists(): time.sleep(0.01)\nread ="
)
IGNORES_SIGNALS = _PRELUDE + (
    "signal.signal(signal.SIGTERM, signal.SIG_IGN); tell('loaded', ''); time.sleep(60)"
)

Make = Callable[..., Child]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes children that run some code, and ends them."""
    made: list[Child] = []

    def one(code: str, config: bytes = b"config", *, stop_seconds: float = 30.0) -> Child:
        command = (sys.executable, "-I", "-c", code, str(tmp_path))
        child = Child(
            Component("one", command, lambda: None, config, waits=True, stop_seconds=stop_seconds),
            tmp_path,
        )
        made.append(child)
        return child

    yield one
    for child in made:
        child.abandon()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def content(path: Path) -> str:
    until(path.exists)
    return path.read_text()


def described(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


@pytest.mark.parametrize("config", [b"", b"config", LARGE], ids=["none", "small", "large"])
def test_it_waits_until_it_is_admitted_and_then_has_all_of_its_configuration(
    make: Make, tmp_path: Path, config: bytes
) -> None:
    child = make(READS, config)
    child.prepare()
    pid = int(content(tmp_path / "loaded"))
    assert child.waiting and child.process is not None and child.process.pid == pid
    assert not child.pid_file.exists(), "who comes after would look for it"
    assert not (tmp_path / "read").exists()
    child.admit()
    assert not child.waiting
    assert read_pid_file(child.pid_file) == child.process
    assert content(tmp_path / "read") == described(config)


def test_a_large_configuration_reaches_who_takes_its_time(make: Make, tmp_path: Path) -> None:
    """The first part is in the socket before anybody reads."""
    child = make(READS, LARGE)
    child.prepare()  # and admitted while the interpreter is still loading
    child.admit()
    assert content(tmp_path / "read") == described(LARGE)


def test_who_reads_nothing_is_given_up_after_a_while_and_finds_no_whole_configuration(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component, "_TELL_SECONDS", 0.3)
    child = make(READS_LATE, LARGE)
    child.prepare()
    content(tmp_path / "loaded")
    started = time.monotonic()
    child.admit()
    assert time.monotonic() - started < PATIENCE
    (tmp_path / "go").touch()
    read = int(content(tmp_path / "read").split()[0])
    assert 0 < read < len(LARGE)


def test_one_that_died_while_it_waited_is_started_at_its_turn(make: Make, tmp_path: Path) -> None:
    child = make(READS)
    child.prepare()
    first = int(content(tmp_path / "loaded"))
    os.kill(first, signal.SIGKILL)
    until(lambda: child.reap() == -signal.SIGKILL)
    assert (child.waiting, child.process, child.due, child.restarts) == (False, None, None, 0)
    child.admit()
    assert content(tmp_path / "read") == described(b"config")
    assert read_pid_file(child.pid_file) == child.process
    assert child.process is not None and child.process.pid != first


@pytest.mark.parametrize("config", [b"config", LARGE], ids=["small", "large"])
def test_one_that_died_unnoticed_before_it_is_admitted_is_started_again_later(
    make: Make, tmp_path: Path, config: bytes
) -> None:
    child = make(READS, config)
    child.prepare()
    first = int(content(tmp_path / "loaded"))
    os.kill(first, signal.SIGKILL)
    os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    child.admit()
    assert child.reap() == -signal.SIGKILL
    assert child.due is not None and child.restarts == 1
    assert not child.pid_file.exists()
    child.start()
    assert content(tmp_path / "read") == described(config)


@pytest.mark.parametrize("end", [Child.stop, Child.leave, Child.abandon])
def test_one_that_is_never_admitted_is_ended_at_once_whatever_it_does_with_signals(
    make: Make, tmp_path: Path, end: Callable[[Child], None]
) -> None:
    child = make(IGNORES_SIGNALS, stop_seconds=PATIENCE * 2)
    child.prepare()
    content(tmp_path / "loaded")
    process = child.process
    assert process is not None
    started = time.monotonic()
    end(child)
    assert time.monotonic() - started < PATIENCE
    assert not process.alive()
    assert not child.pid_file.exists()


def test_a_component_that_cannot_wait_is_not_started_before_its_turn(tmp_path: Path) -> None:
    child = Child(Component("one", ("/bin/false",), lambda: None), tmp_path)
    child.prepare()
    assert (child.process, child.waiting) == (None, False)


# Prepares a component and dies before it admits it, or in the middle of that.
_DIES = """
import os, pathlib, socket, sys
from sandgate.supervisor.component import Child, Component
module, directory = sys.argv[1], pathlib.Path(sys.argv[2])
command = (sys.executable, "-I", "-u", "-m", module)
child = Child(Component(module, command, lambda: None, waits=True), directory)
child.prepare()
child._input.sendall(sys.argv[3].encode())
print(child.process.pid, child.process.start, child.process.boot, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("sent", ["", '{"settings": {"data_dir": "/nowh'], ids=["nothing", "half"])
def test_every_component_ends_if_its_supervisor_dies_before_it_is_admitted(
    tmp_path: Path, sent: str
) -> None:
    modules = ("sandgate.runtime", "sandgate.egress", "sandgate.recorder", "sandgate.api")
    starters = [
        subprocess.Popen(
            [sys.executable, "-c", _DIES, module, str(tmp_path), sent],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for module in modules
    ]
    left = []
    for starter in starters:
        pid, start, boot = starter.communicate(timeout=30)[0].split()
        left.append(ProcessId(int(pid), int(start), boot))
    for module, process in zip(modules, left, strict=True):
        try:
            assert process.wait(30.0), f"{module} runs without a configuration"
        finally:
            process.send(signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []
