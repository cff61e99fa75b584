from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sandgate.supervisor.processes import ProcessId

HARNESS = Path(__file__).with_name("harness.py")

PRELUDE = """
import os, pathlib, signal, subprocess, sys, time
directory, name = pathlib.Path(sys.argv[1]), sys.argv[2]
ready = directory / f"{name}.ready"
def note(text):
    with (directory / f"{name}.notes").open("a") as file:
        print(text, file=file)
"""
SERVES = PRELUDE + "note('up'); ready.touch(); time.sleep(60)"
ENDS_POLITELY = (
    PRELUDE
    + """
def bye(*_):
    note(f'{time.monotonic()} bye')
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
ready.touch()
time.sleep(60)
"""
)


def has_offspring(*, session: bool) -> str:
    return PRELUDE + (
        f"offspring = subprocess.Popen(['sleep', '60'], start_new_session={session})\n"
        "note(f'offspring {offspring.pid}')\n"
        "signal.signal(signal.SIGTERM, lambda *_: (note('asked'), os._exit(0)))\n"
        "ready.touch()\n"
        "time.sleep(60)\n"
    )


class Node:
    """One directory, and the supervisors that were started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        self.supervisors: list[subprocess.Popen[bytes]] = []

    def children(self, *specs: dict[str, Any]) -> None:
        (self.directory / "children.json").write_text(json.dumps(specs))

    def start(self, until: str | None = "ready") -> subprocess.Popen[bytes]:
        (self.directory / "state.json").unlink(missing_ok=True)
        with self.log.open("ab") as log:
            handle = subprocess.Popen(
                [sys.executable, str(HARNESS), str(self.directory)],
                stderr=log,
                env={**os.environ, "OPERATORS_SECRET": "1"},
            )
        self.supervisors.append(handle)
        if until is not None:
            self.until(lambda: self.state["phase"] == until, handle)
        return handle

    @property
    def state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self.directory / "state.json").read_text())
        except FileNotFoundError:
            return {"phase": None, "children": {}}
        return state

    def child(self, name: str) -> ProcessId:
        self.until(lambda: bool(self.state["children"].get(name, [None])[0]))
        process = ProcessId.of(self.state["children"][name][0])
        assert process is not None
        return process

    def notes(self, name: str) -> list[str]:
        path = self.directory / f"{name}.notes"
        return path.read_text().splitlines() if path.exists() else []

    def offspring(self, name: str) -> list[ProcessId]:
        pids = [int(note.split()[1]) for note in self.notes(name) if note.startswith("offspring")]
        return [process for pid in pids if (process := ProcessId.of(pid)) is not None]

    def until(
        self, condition: Callable[[], bool], handle: subprocess.Popen[bytes] | None = None
    ) -> None:
        deadline = time.monotonic() + 15
        while not condition():
            assert handle is None or handle.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    left = [process for path in tmp_path.glob("*.notes") for process in node.offspring(path.stem)]
    for handle in node.supervisors:
        handle.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            handle.wait(10)
        handle.kill()
        handle.wait()
    for path in tmp_path.glob("pids/*.pid"):
        recorded = ProcessId.of(json.loads(path.read_text())["pid"])
        if recorded is not None:
            recorded.send(signal.SIGKILL)
    for process in left:
        process.send(signal.SIGKILL)


def ended_politely(node: Node, handle: subprocess.Popen[bytes]) -> None:
    handle.send_signal(signal.SIGTERM)
    assert handle.wait(10) == 0, node.log.read_text()


def test_children_start_in_order_and_end_in_reverse(node: Node) -> None:
    node.children(
        {"name": "one", "code": ENDS_POLITELY},
        {"name": "two", "code": ENDS_POLITELY},
    )
    handle = node.start()
    first, second = node.child("one"), node.child("two")
    assert first.start <= second.start
    ended_politely(node, handle)
    assert not first.alive()
    assert not second.alive()
    times = {name: float(node.notes(name)[0].split()[0]) for name in ("one", "two")}
    assert times["two"] < times["one"]
    assert list((node.directory / "pids").iterdir()) == []


def test_a_child_that_died_while_it_waited_for_its_turn_is_started_then(node: Node) -> None:
    first = PRELUDE + (
        "while not (directory / 'go').exists(): time.sleep(0.01)\nready.touch(); time.sleep(60)"
    )
    waits = SERVES.replace("note('up')", "note('loaded'); note(sys.stdin.read())")
    node.children(
        {"name": "one", "code": first},
        {"name": "two", "code": waits, "waits": True, "config": "configured"},
    )
    handle = node.start(until=None)
    node.until(lambda: node.notes("two") == ["loaded"], handle)
    early = node.child("two")
    assert early.send(signal.SIGKILL)
    node.until(lambda: node.state["children"]["two"] == [early.pid, 0] and not early.alive())
    (node.directory / "go").touch()
    node.until(lambda: node.state["phase"] == "ready", handle)
    assert node.notes("two") == ["loaded", "loaded", "configured"]
    assert node.state["children"]["two"][1] == 0
    ended_politely(node, handle)


def test_the_second_child_waits_until_the_first_is_ready(node: Node) -> None:
    slow = PRELUDE + "time.sleep(0.5); note(time.monotonic()); ready.touch(); time.sleep(60)"
    after = PRELUDE + "note(time.monotonic()); ready.touch(); time.sleep(60)"
    node.children({"name": "slow", "code": slow}, {"name": "after", "code": after})
    node.start()
    assert float(node.notes("after")[0]) > float(node.notes("slow")[0])


def test_a_child_reads_its_configuration_and_nothing_of_the_operators_environment(
    node: Node,
) -> None:
    code = PRELUDE + (
        "note(len(sys.stdin.read())); note(sorted(os.environ)); note(os.getcwd());"
        "note(os.getpgid(0) == os.getpid());"
        "note(signal.pthread_sigmask(signal.SIG_BLOCK, []));"
        "ready.touch(); time.sleep(60)"
    )
    config = "x" * 300_000  # more than a pipe holds
    node.children({"name": "reader", "code": code, "config": config})
    node.start()
    assert node.notes("reader") == ["300000", "['LANG', 'PATH']", "/", "True", "set()"]


def test_a_child_that_dies_is_started_again_with_growing_delays(node: Node) -> None:
    code = PRELUDE + (
        "note(time.monotonic()); ready.touch();\n"
        "while not (directory / 'crash').exists(): time.sleep(0.01)\n"
    )
    node.children({"name": "mortal", "code": code})
    handle = node.start()
    (node.directory / "crash").touch()
    node.until(lambda: len(node.notes("mortal")) >= 5, handle)
    (node.directory / "crash").unlink()
    times = [float(note) for note in node.notes("mortal")][1:5]
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4
    assert gaps[2] >= 0.8
    assert node.state["phase"] == "ready"
    assert node.state["children"]["mortal"][1] >= 4


def test_the_others_run_on_when_one_is_killed(node: Node) -> None:
    node.children({"name": "one", "code": SERVES}, {"name": "two", "code": SERVES})
    handle = node.start()
    one, two = node.child("one"), node.child("two")
    one.send(signal.SIGKILL)
    node.until(lambda: len(node.notes("one")) == 2, handle)
    assert two.alive()
    assert node.child("two") == two
    assert node.child("one") != one
    assert "one ended (killed by signal 9" in node.log.read_text()


def test_what_a_killed_child_left_is_killed_before_it_starts_again(node: Node) -> None:
    node.children({"name": "parent", "code": has_offspring(session=False)})
    handle = node.start()
    (offspring,) = node.offspring("parent")
    node.child("parent").send(signal.SIGKILL)
    node.until(lambda: len(node.notes("parent")) == 2, handle)
    assert not offspring.alive()


def test_what_outlives_a_component_is_left_when_it_is_killed(node: Node) -> None:
    node.children({"name": "launcher", "code": has_offspring(session=False), "outlived": True})
    handle = node.start()
    (offspring,) = node.offspring("launcher")
    node.child("launcher").send(signal.SIGKILL)
    node.until(lambda: len(node.notes("launcher")) == 2, handle)
    assert offspring.alive()


def test_a_new_supervisor_replaces_the_children_of_a_killed_one(node: Node) -> None:
    node.children(
        {
            "name": "launcher",
            "code": has_offspring(session=True),
            "outlived": True,
        },
        {"name": "worker", "code": has_offspring(session=False)},
    )
    first = node.start()
    launcher, worker = node.child("launcher"), node.child("worker")
    (sandbox,), (helper,) = node.offspring("launcher"), node.offspring("worker")
    first.kill()
    first.wait()
    assert launcher.alive()
    assert worker.alive()
    node.start()
    assert not launcher.alive()
    assert not worker.alive()
    assert not helper.alive()
    assert sandbox.alive()
    assert "asked" not in node.notes("launcher")
    assert node.child("launcher") != launcher
    assert "stale: ['launcher', 'worker']" in node.log.read_text()


def test_a_take_over_that_fails_keeps_what_outlived(node: Node) -> None:
    launcher = {
        "name": "launcher",
        "code": has_offspring(session=True),
        "outlived": True,
    }
    node.children(launcher)
    first = node.start()
    (sandbox,) = node.offspring("launcher")
    first.kill()
    first.wait()
    node.children(launcher, {"name": "broken", "code": "raise SystemExit(7)"})
    second = node.start(until=None)
    assert second.wait(15) == 1
    assert sandbox.alive()
    assert "failed: broken ended 3 times during the start" in node.log.read_text()
    assert list((node.directory / "pids").iterdir()) == []


def test_a_component_that_refuses_ends_the_start_at_once_with_its_reason(node: Node) -> None:
    code = PRELUDE + (
        "note('up'); sys.stdin.read()\n"
        "from sandgate.refusal import refuse; refuse('no such thing; get one')"
    )
    node.children({"name": "one", "code": ENDS_POLITELY}, {"name": "picky", "code": code})
    handle = node.start(until=None)
    assert handle.wait(15) == 1
    assert node.log.read_text().endswith("\nfailed: no such thing; get one\n")
    assert node.notes("picky") == ["up"]
    assert "bye" in node.notes("one")[-1]
    assert list((node.directory / "pids").iterdir()) == []


def test_a_refusal_after_the_start_is_a_death_like_any_other(node: Node) -> None:
    code = PRELUDE + (
        "note('up'); ready.touch()\n"
        "while not (directory / 'crash').exists(): time.sleep(0.01)\n"
        "(directory / 'crash').unlink()\n"
        "from sandgate.refusal import refuse; refuse('no such thing any more')"
    )
    node.children({"name": "picky", "code": code})
    handle = node.start()
    (node.directory / "crash").touch()
    node.until(lambda: len(node.notes("picky")) == 2, handle)
    assert "no such thing any more" in node.log.read_text()
    ended_politely(node, handle)


def test_what_a_dead_launcher_leaves_is_reaped_when_it_ends(node: Node) -> None:
    node.children(
        {"name": "launcher", "code": has_offspring(session=True), "outlived": True},
        {"name": "talker", "code": SERVES, "piped": True},
    )
    handle = node.start()
    (orphan,) = node.offspring("launcher")
    node.child("launcher").send(signal.SIGKILL)
    node.until(lambda: len(node.notes("launcher")) == 2, handle)
    assert f"PPid:\t{handle.pid}\n" in Path(f"/proc/{orphan.pid}/status").read_text()
    orphan.send(signal.SIGKILL)
    node.until(lambda: not Path(f"/proc/{orphan.pid}").exists(), handle)
    talker = node.child("talker")
    talker.send(signal.SIGKILL)
    node.until(lambda: len(node.notes("talker")) == 2, handle)
    assert "talker ended (killed by signal 9" in node.log.read_text()  # its status was not taken
    ended_politely(node, handle)


def test_the_status_of_a_component_is_left_for_the_component(tmp_path: Path) -> None:
    code = """
import os, pathlib, sys
from sandgate.supervisor.component import Component
from sandgate.supervisor.supervisor import Supervisor
component = Component("brief", (sys.executable, "-c", "raise SystemExit(7)"), lambda: None)
supervisor = Supervisor([component], pathlib.Path(sys.argv[1]))
(child,) = supervisor.children
child.start()
os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
supervisor._reap_orphans()
print(child.reap())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "7\n", done.stderr


def test_a_start_fails_with_the_reason_when_a_component_never_gets_ready(node: Node) -> None:
    node.children({"name": "deaf", "code": "import time; time.sleep(60)"})
    handle = node.start(until=None)
    deaf = node.child("deaf")
    assert handle.wait(15) == 1
    assert "failed: deaf was not ready within 5 s: deaf.ready is missing" in node.log.read_text()
    assert not deaf.alive()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_during_the_start_ends_what_was_started(
    node: Node, signum: signal.Signals
) -> None:
    node.children({"name": "deaf", "code": "import time; time.sleep(60)"})
    handle = node.start(until=None)
    deaf = node.child("deaf")
    handle.send_signal(signum)
    assert handle.wait(10) == 0
    assert not deaf.alive()


def test_a_child_that_ignores_the_polite_signal_is_killed(node: Node) -> None:
    code = PRELUDE + "signal.signal(signal.SIGTERM, signal.SIG_IGN); ready.touch(); time.sleep(60)"
    node.children({"name": "stubborn", "code": code, "stop_seconds": 0.2})
    handle = node.start()
    stubborn = node.child("stubborn")
    ended_politely(node, handle)
    assert not stubborn.alive()


def test_a_piped_child_cannot_change_the_flags_of_the_log(node: Node) -> None:
    code = PRELUDE + (
        "import fcntl\n"
        "fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK)\n"
        "print('said on stdout'); print('said on stderr', file=sys.stderr)\n"
        "ready.touch()\n"
        "time.sleep(60)\n"
    )
    node.children({"name": "talker", "code": code, "piped": True})
    handle = node.start()
    node.until(lambda: "said on stderr" in node.log.read_text())
    assert "said on stdout" in node.log.read_text()
    flags = Path(f"/proc/{handle.pid}/fdinfo/2").read_text().split("flags:")[1].split()[0]
    assert int(flags, 8) & os.O_APPEND
    assert not int(flags, 8) & os.O_NONBLOCK
    # Emptied, as the rotation does, the log goes on at its beginning.
    os.truncate(node.log, 0)
    node.child("talker").send(signal.SIGKILL)
    node.until(lambda: "said on stderr" in node.log.read_text(), handle)
    assert b"\0" not in node.log.read_bytes()
    ended_politely(node, handle)
