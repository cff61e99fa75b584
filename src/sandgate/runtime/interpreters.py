"""Starts the code interpreter of a sandbox when somebody first connects to its port.

Each sandbox of a template that can run code has a listening socket, the door. The launcher waits
for a connection there (and reads nothing from it), has a zygote fork an interpreter into the
sandbox, and leaves the door to it until it dies. A sandbox that never runs code has the socket and
nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sandgate.runtime.zygote import Zygote

_STEADY_S = 10.0
"""One that lived so long did not die of its own."""
_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 30.0

_log = logging.getLogger(__name__)

Layers = tuple[Path, ...]


@dataclass(slots=True, eq=False)
class Door:
    """What the interpreter of one sandbox is started with, and how it is doing."""

    listener: int
    """Descriptor, closed by :meth:`Interpreters.forget`."""
    number: int
    """Its number in the sandbox's first process."""
    layers: Layers
    envd: int
    """Pid of the sandbox's first process."""
    groups: tuple[str, ...]
    paused: Callable[[], bool]
    changed: Callable[[], None]
    """Called when an interpreter was started, and when it died."""
    pid: int | None = None
    """Of the interpreter, while there is one; likewise `pidfd`."""
    pidfd: int | None = None
    started: float = 0.0
    deaths: int = 0
    """In a row, each soon after the start."""


@dataclass(slots=True)
class _Nest:
    """A zygote and those who wait for it."""

    zygote: Zygote
    waiting: dict[int, Door] = field(default_factory=dict)


class Interpreters:
    """All doors of a node. Driven by the launcher's selector."""

    def __init__(self, selector: selectors.BaseSelector, scratch: Path, seccomp: bytes) -> None:
        self._selector = selector
        self._scratch = scratch
        self._seccomp = seccomp
        self._doors: set[Door] = set()
        self._later: dict[Door, float] = {}
        """When to listen again, of those that nobody listens to before."""
        self._nests: dict[Layers, _Nest] = {}
        self._requests = 0

    def prepare(self, layers: Layers) -> None:
        """Have a zygote ready for sandboxes of these layers, by the time one runs code."""
        try:
            self._nest(layers)
        except OSError as error:
            _log.error("no zygote could be started: %s", error)

    def watch(self, door: Door) -> None:
        """Start an interpreter when somebody knocks, or once the one that runs has died."""
        self._doors.add(door)
        if door.pid is not None and door.pidfd is not None:
            self._running(door, door.pid, door.pidfd)
        else:
            self._listen(door)

    def forget(self, door: Door) -> None:
        """The sandbox is gone."""
        self._doors.discard(door)
        if door.pidfd is not None:
            self._selector.unregister(door.pidfd)
            os.close(door.pidfd)
            door.pidfd = None
        elif door not in self._later:
            with contextlib.suppress(KeyError):  # it is just being started
                self._selector.unregister(door.listener)
        self._later.pop(door, None)
        os.close(door.listener)
        self._drop_unused()

    def work(self) -> None:
        """Listen again where it is time."""
        now = time.monotonic()
        for door in [door for door, moment in self._later.items() if moment <= now]:
            del self._later[door]
            self._listen(door)

    def patience(self) -> float | None:
        """Seconds until :meth:`work` has something to do."""
        return max(0.0, min(self._later.values()) - time.monotonic()) if self._later else None

    def end(self) -> None:
        """End all zygotes. Interpreters live as long as their sandboxes."""
        for layers in list(self._nests):
            self._drop(layers)

    def _listen(self, door: Door) -> None:
        self._selector.register(door.listener, selectors.EVENT_READ, lambda: self._knock(door))

    def _listen_later(self, door: Door, seconds: float) -> None:
        self._later[door] = time.monotonic() + seconds

    def _knock(self, door: Door) -> None:
        self._selector.unregister(door.listener)
        if door.paused():
            self._listen_later(door, _FIRST_DELAY_S)
            return
        try:
            nest = self._nest(door.layers)
            self._requests += 1
            nest.zygote.start(self._requests, door.envd, door.listener, door.groups)
            nest.waiting[self._requests] = door
        except OSError as error:
            self._failed(door, str(error))

    def _failed(self, door: Door, reason: str) -> None:
        door.deaths += 1
        delay = min(_FIRST_DELAY_S * 2**door.deaths, _LONGEST_DELAY_S)
        _log.warning("no interpreter could be started, again in %.1f s: %s", delay, reason)
        self._listen_later(door, delay)

    def _nest(self, layers: Layers) -> _Nest:
        nest = self._nests.get(layers)
        if nest is None:
            nest = self._nests[layers] = _Nest(Zygote(layers, self._scratch, self._seccomp))
            self._selector.register(
                nest.zygote.channel, selectors.EVENT_READ, lambda: self._hear(layers)
            )
        return nest

    def _hear(self, layers: Layers) -> None:
        nest = self._nests[layers]
        answer = nest.zygote.hear()
        if answer is None:
            self._drop(layers)
            return
        door = nest.waiting.pop(answer.request, None)
        if door is None or door not in self._doors:
            if answer.pidfd is not None:
                os.close(answer.pidfd)
        elif answer.pidfd is None:
            self._failed(door, answer.error or "no reason was given")
        else:
            self._running(door, answer.pid, answer.pidfd)
            door.changed()

    def _running(self, door: Door, pid: int, pidfd: int) -> None:
        door.pid, door.pidfd = pid, pidfd
        door.started = time.monotonic()
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._died(door))

    def _died(self, door: Door) -> None:
        assert door.pidfd is not None
        self._selector.unregister(door.pidfd)
        os.close(door.pidfd)
        door.pid = door.pidfd = None
        door.changed()
        steady = time.monotonic() - door.started > _STEADY_S
        door.deaths = 0 if steady else door.deaths + 1
        self._listen_later(door, min(_FIRST_DELAY_S * 2**door.deaths, _LONGEST_DELAY_S))

    def _drop(self, layers: Layers) -> None:
        nest = self._nests.pop(layers)
        self._selector.unregister(nest.zygote.channel)
        nest.zygote.end()
        for door in nest.waiting.values():
            if door in self._doors:
                self._failed(door, "its zygote died")

    def _drop_unused(self) -> None:
        """A template that was built anew has another zygote: end those nobody can need."""
        used = {door.layers for door in self._doors}
        newest = next(reversed(self._nests), None)
        for layers in [one for one in self._nests if one not in used and one != newest]:
            self._drop(layers)
