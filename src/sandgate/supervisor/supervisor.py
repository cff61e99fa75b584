"""The loop of the parent process. One thread, no network, no sandbox."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sandgate.runtime import linux
from sandgate.supervisor.component import Child, Component
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.takeover import end_drained, note_drained, retire

KEEP_SIGNAL = signal.SIGUSR1
"""Ends the components and keeps the sandboxes, for the next supervisor to take over."""
HAND_OVER_SIGNAL = signal.SIGUSR2
"""Ends the supervisor alone: its components serve until the next one replaces them."""
_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGCHLD,
    KEEP_SIGNAL,
    HAND_OVER_SIGNAL,
)
_TICK = 1.0
_UNKNOWN_STOP_SECONDS = 5.0
"""For a component that only an earlier version has."""
_FIRST_PROBES = 0.02
_LATER_PROBES = 0.25
START_ATTEMPTS = 3
"""A component that dies this often before the node was ever ready ends the start."""

SEE_LOG = "its messages are in the log above"

log = logging.getLogger("sandgate.supervisor")


class StartError(RuntimeError):
    """The node could not be brought up. The text says which component and why."""


class Phase(StrEnum):
    """Where a node is in its life."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


class Ending(StrEnum):
    """What a supervisor leaves behind."""

    DOWN = "down"
    """Nothing."""
    KEPT = "kept"
    """What outlives its component: sandboxes."""
    HANDED_OVER = "handed over"
    """Everything."""


class _StopRequested(Exception):
    """A signal asked the supervisor to end. Private to the loop."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending)
        self.ending = ending


_ENDINGS = {KEEP_SIGNAL: Ending.KEPT, HAND_OVER_SIGNAL: Ending.HANDED_OVER}


@dataclass(slots=True)
class Supervisor:
    """Runs `components` in order, restarts those that die, ends them in reverse order."""

    components: Sequence[Component]
    pid_dir: Path
    took_over: bool = False
    """Is there something that outlived an earlier supervisor? A failed start then keeps it."""
    predecessors: Mapping[str, ProcessId] = field(default_factory=dict)
    """Components of an earlier supervisor that serve, by name: they are replaced one by one."""
    start_seconds: float = 60.0
    """Longest wait for one component to become ready at the first start."""
    finally_ready: Callable[[], str | None] = lambda: None
    """What has to be ready besides each component by itself."""
    on_change: Callable[[Phase, Sequence[Child]], None] = lambda _phase, _children: None
    """Told whenever the phase or a process changes."""
    on_tick: Callable[[], None] = lambda: None
    """Called about once a second while the node runs."""
    children: list[Child] = field(init=False)
    _phase: Phase = field(init=False, default=Phase.STARTING)

    def __post_init__(self) -> None:
        self.children = [Child(component, self.pid_dir) for component in self.components]

    def run(self) -> Ending:
        """Run until a signal: SIGTERM, SIGINT and SIGHUP end everything, KEEP_SIGNAL and
        HAND_OVER_SIGNAL what they say. Raises :class:`StartError`."""
        # Sandboxes of a launcher that died become children of this process, which buries them when
        # they end.
        linux.become_subreaper()
        with _blocked_signals():
            try:
                self._start()
                self._enter(Phase.READY)
                while True:
                    self._step(_TICK)
                    self.on_tick()
            except _StopRequested as stop:
                if stop.ending is Ending.HANDED_OVER and self._phase is Phase.READY:
                    return stop.ending
                keep = stop.ending is not Ending.DOWN
                self._stop(keep_outliving=keep)
                return Ending.KEPT if keep else Ending.DOWN
            except BaseException:
                self._stop(keep_outliving=self.took_over)
                raise

    def _start(self) -> None:
        self._enter(Phase.STARTING)
        for child in self.children:
            self._spawn(child, Child.prepare)
        for child in self.children:
            self._bring_up(child)
        for name in self.predecessors.keys() - {child.component.name for child in self.children}:
            retire(self.predecessors[name], outlived=False, stop_seconds=_UNKNOWN_STOP_SECONDS)
        self._await_ready("the node", self.finally_ready)

    def _bring_up(self, child: Child) -> None:
        """Start a component, in the place of its predecessor if there is one."""
        component = child.component
        old = self.predecessors.get(component.name)
        if old is not None:
            if component.drain is not None:
                # From here on it is known to end, whatever becomes of its successor.
                note_drained(self.pid_dir, old)
            else:
                retire(old, outlived=component.outlived, stop_seconds=component.stop_seconds)
            for path in component.makes:
                path.unlink(missing_ok=True)
        try:
            self._spawn(child, Child.admit)
            self._await_ready(component.name, component.probe)
        finally:
            if old is not None and component.drain is not None:
                old.send(component.drain)

    def _await_ready(self, name: str, probe: Callable[[], str | None]) -> None:
        deadline = time.monotonic() + self.start_seconds
        pause = _FIRST_PROBES
        while (missing := probe()) is not None:
            if time.monotonic() > deadline:
                raise StartError(f"{name} was not ready within {self.start_seconds:g} s: {missing}")
            self._step(pause)
            pause = min(_LATER_PROBES, pause * 1.2)
            for other in self.children:
                if other.restarts >= START_ATTEMPTS:
                    raise StartError(
                        f"{other.component.name} ended {other.restarts} times during the start; "
                        f"{SEE_LOG}"
                    )
        log.info("%s is ready", name)

    def _step(self, timeout: float) -> None:
        """Wait for a signal, reap the dead, start what is due."""
        now = time.monotonic()
        for child in self.children:
            if child.due is not None:
                timeout = min(timeout, max(0.0, child.due - now))
        received = signal.sigtimedwait(_SIGNALS, timeout)
        if received is not None and received.si_signo != signal.SIGCHLD:
            number = signal.Signals(received.si_signo)
            log.info("ending on %s", number.name)
            raise _StopRequested(_ENDINGS.get(number, Ending.DOWN))
        for child in self.children:
            status = child.reap()
            if child.refused is not None and self._phase is Phase.STARTING:
                raise StartError(child.refused)
            if status is not None and child.due is not None:
                delay = max(0.0, child.due - time.monotonic())
                log.warning(
                    "%s ended (%s); starting it again in %.1f s",
                    child.component.name,
                    _describe(status),
                    delay,
                )
                self._tell()
            if child.due is not None and child.due <= time.monotonic():
                self._spawn(child, Child.start)
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Take the exit status of ended children that no component started."""
        own = set().union(*(child.children() for child in self.children))
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            # A component that has ended since it was asked keeps others waiting for a moment.
            if ended is None or ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, 0)

    def _spawn(self, child: Child, start: Callable[[Child], None]) -> None:
        try:
            start(child)
        except OSError as error:
            if self._phase is not Phase.READY:
                raise StartError(f"cannot start {child.component.name}: {error}") from error
            log.error("cannot start %s: %s", child.component.name, error)
            child.postpone()
        self._tell()

    def _stop(self, *, keep_outliving: bool) -> None:
        self._enter(Phase.STOPPING)
        for child in reversed(self.children):
            if not keep_outliving:
                child.stop()
            elif child.component.outlived:
                child.abandon()
            else:
                child.leave()
        if not keep_outliving:
            end_drained(self.pid_dir)

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._tell()

    def _tell(self) -> None:
        self.on_change(self._phase, self.children)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Signals wait to be taken by `sigtimedwait`, so none is lost between two steps."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe(status: int) -> str:
    if status < 0:
        return f"killed by signal {-status}, {signal.strsignal(-status)}"
    return f"exit status {status}"
