"""The state of a node, looked at from outside: what `sandgate status` shows."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sandgate.runtime import linux
from sandgate.settings import Settings
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.probes import Health, https_health, socket_missing
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.record import NodeRecord, running_node

_POLL = 0.1


class State(StrEnum):
    """What a node can be found to be."""

    READY = "ready"
    NOT_READY = "not ready"
    """It runs, but something of it does not answer."""
    STOPPED = "not running"


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One look at a node."""

    state: State
    problems: tuple[str, ...] = ()
    """What keeps it from being ready."""
    supervisor: ProcessId | None = None
    record: NodeRecord | None = None
    sandboxes: int | None = None
    """How many run; None if the API could not be asked."""


def inspect(settings: Settings) -> NodeStatus:
    """Look at the node that `settings` stand for. Raises PermissionError for other users."""
    layout = Layout.of(settings)
    supervisor, record = running_node(layout)
    if supervisor is None:
        return NodeStatus(State.STOPPED)
    if record is None:
        return NodeStatus(State.NOT_READY, ("it is starting",), supervisor)
    with network_of(supervisor):
        problems = tuple(
            f"{name}: {missing}" for name, probe in probes(layout, record) if (missing := probe())
        )
        if record.phase != "ready":
            problems = (f"it is {record.phase}", *problems)
        sandboxes = None if problems else ask_health(record).sandboxes
    state = State.NOT_READY if problems else State.READY
    return NodeStatus(state, problems, supervisor, record, sandboxes)


def wait_until_ready(
    settings: Settings, seconds: float, give_up: Callable[[], bool] = lambda: False
) -> NodeStatus:
    """Look again and again, up to `seconds` or until `give_up()`; the last look."""
    deadline = time.monotonic() + seconds
    while True:
        hopeless = give_up()
        status = inspect(settings)
        if status.state is State.READY or hopeless or time.monotonic() >= deadline:
            return status
        time.sleep(_POLL)


def probes(layout: Layout, record: NodeRecord) -> list[tuple[str, Callable[[], str | None]]]:
    """What has to answer for the node to be ready, by component, in the order of the start."""
    kinds = {"launcher": socket.SOCK_SEQPACKET}
    sockets = [
        (name, _socket_probe(layout.socket(name), kinds.get(name, socket.SOCK_STREAM)))
        for name in ("launcher", "egress", "recorder", "haproxy", "control")
    ]
    return [*sockets, ("https", lambda: ask_health(record).missing)]


def ask_health(record: NodeRecord) -> Health:
    """What the API says of the node, asked as a client would."""
    return https_health(str(record.listen), record.https_port, f"api.{record.host}", record.trusted)


def _socket_probe(path: Path, kind: socket.SocketKind) -> Callable[[], str | None]:
    return lambda: socket_missing(path, kind)


@contextmanager
def network_of(process: ProcessId) -> Iterator[None]:
    """Act in the network namespace of `process`, if that is another one (needs root)."""
    theirs = Path(f"/proc/{process.pid}/ns/net")
    ours = Path("/proc/thread-self/ns/net")
    try:
        same = os.path.samestat(theirs.stat(), ours.stat())
    except FileNotFoundError:
        same = True  # it has just ended; the probes will say so
    if same:
        yield
        return
    home = os.open(ours, os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
        try:
            linux.setns(there, linux.CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            linux.setns(home, linux.CLONE_NEWNET)
    finally:
        os.close(home)
