"""One component of a node: how it is started, found again after a crash, and ended."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from sandgate import refusal
from sandgate.supervisor import pump
from sandgate.supervisor.backoff import Backoff
from sandgate.supervisor.processes import (
    ProcessId,
    end,
    end_group,
    read_pid_file,
    write_pid_file,
)
from sandgate.supervisor.takeover import note_drained, retire

CHILD_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""All that a component inherits: nothing of the operator's shell reaches it."""
_TELL_SECONDS = 5.0
"""Longest time for a component to read a configuration that its socket cannot hold."""
_PIPE = 1 << 20
"""Bytes that a piped component can be ahead of its pump; it may drop what does not fit."""


@dataclass(frozen=True, slots=True)
class Component:
    """What the supervisor must know of one component."""

    name: str
    command: tuple[str, ...]
    probe: Callable[[], str | None]
    """Says what is missing for the component to be ready, or None if nothing is."""
    config: bytes = b""
    """What it reads on standard input, to its end: its settings and secrets, seen by no other
    process. It may say there why it cannot run (:mod:`sandgate.refusal`)."""
    waits: bool = False
    """Does it do nothing before it has its configuration but load its program? Then it can be
    started before its turn; should the supervisor die meanwhile, it finds none and ends."""
    stop_seconds: float = 5.0
    """Time between the polite signal and the kill."""
    sockets: tuple[int, ...] = ()
    """Descriptors that it inherits, under the same numbers."""
    outlived: bool = False
    """Do its descendants outlive it (sandboxes the launcher)? Else they are killed with it."""
    drain: signal.Signals | None = None
    """Asked by it, it takes no new connections, serves those it has and then ends. Its successor
    can be started before."""
    makes: tuple[Path, ...] = ()
    """The unix sockets it makes, to be removed before it is started in place of another."""
    piped: bool = False
    """Give it a pipe to write to, and not the log itself? For a program that changes the flags of
    its output (HAProxy does), which all processes that write there would share."""


@dataclass(slots=True)
class Child:
    """A component's process, over all its restarts."""

    component: Component
    pid_dir: Path
    backoff: Backoff = field(default_factory=Backoff)
    restarts: int = 0
    due: float | None = None
    """When (monotonic) it is to be started again; None while it runs."""
    process: ProcessId | None = None
    refused: str | None = None
    """Why it ended, if it said that it cannot run on this machine."""
    _handle: subprocess.Popen[bytes] | None = None
    _pump: subprocess.Popen[bytes] | None = None
    """What copies the output of a piped component to the log."""
    waiting: bool = False
    """Has it been started before its turn, and is it without its configuration?"""
    _input: socket.socket | None = None
    """The other end of its standard input."""
    _started: float = 0.0

    @property
    def pid_file(self) -> Path:
        """Where the running process is recorded for a supervisor that comes after this one."""
        return self.pid_dir / f"{self.component.name}.pid"

    def start(self) -> None:
        """Start it in a session of its own. Raises OSError if the command cannot be run."""
        self._spawn(self._before_exec)
        self._tell()

    def prepare(self) -> None:
        """Start it before its turn, if it can wait for that. Raises OSError."""
        if self.component.waits:
            # No record: if nobody is there to admit it, it ends.
            self._spawn(_take_signals)
            self.waiting = True

    def admit(self) -> None:
        """Its turn has come; start it, if it is not there. Raises OSError."""
        if not self.waiting or self.process is None:
            self.start()
            return
        write_pid_file(self.pid_file, self.process)
        self.waiting = False
        self._tell()

    def _tell(self) -> None:
        """Give it its configuration."""
        assert self._input is not None
        try:
            self._input.sendall(self.component.config)
            self._input.shutdown(socket.SHUT_WR)
        except OSError:
            # It has died, or reads nothing and ends now, for want of a whole configuration.
            self._close_input()

    def _spawn(self, before_exec: Callable[[], None]) -> None:
        self._started = time.monotonic()
        self.waiting = False
        with ExitStack() as opened:
            self._close_input()
            self._input, config = socket.socketpair()
            opened.enter_context(config)
            self._input.settimeout(_TELL_SECONDS)
            # What a component says, on either stream, is the node's log.
            output = self._start_pump(opened) if self.component.piped else 2
            self._handle = subprocess.Popen(
                self.component.command,
                stdin=config.fileno(),
                stdout=output,
                stderr=output,
                env=CHILD_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
                pass_fds=self.component.sockets,
                # Run before exec, so that no crash of the supervisor can leave an unrecorded
                # child. The supervisor has one thread, hence no lock can be held here.
                preexec_fn=before_exec,
            )
        self.process = ProcessId.of(self._handle.pid)
        self.due = None

    def _close_input(self) -> None:
        if self._input is not None:
            self._input.close()
            self._input = None

    def _start_pump(self, opened: ExitStack) -> int:
        """A pipe whose content is copied to the log until its last writer is gone."""
        read, write = os.pipe()
        opened.callback(os.close, read)
        opened.callback(os.close, write)
        with suppress(PermissionError):  # fs.pipe-max-size is less
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _PIPE)
        self._end_pump()
        self._pump = subprocess.Popen(
            [sys.executable, "-I", "-S", pump.__file__],
            stdin=read,
            stdout=2,
            env=CHILD_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
            preexec_fn=_take_signals,
        )
        return write

    def _end_pump(self) -> None:
        if self._pump is None:
            return
        try:
            self._pump.wait(1.0)
        except subprocess.TimeoutExpired:
            self._pump.kill()
            self._pump.wait()
        self._pump = None

    def _before_exec(self) -> None:
        _take_signals()
        own = ProcessId.of(os.getpid())
        if own is None:
            raise ProcessLookupError("own process not found in /proc")
        write_pid_file(self.pid_file, own)

    def reap(self) -> int | None:
        """The exit status if it died since the last call; schedules the next start."""
        if self._handle is None:
            return None
        status = self._handle.poll()
        if status is None:
            return None
        self.refused = None
        if status == refusal.EXIT_STATUS and self._input is not None:
            self.refused = refusal.reason_from(self._input)
        early = self.waiting
        self._bury()
        if not early:  # else it is started when its turn comes
            self.postpone()
        return status

    def children(self) -> set[int]:
        """The pids that only this object may reap."""
        if self._pump is not None:
            self._pump.poll()
        running = (self._handle, self._pump)
        return {process.pid for process in running if process and process.returncode is None}

    def postpone(self) -> None:
        """Count a death, or a start that failed, and set the time of the next start."""
        now = time.monotonic()
        self.due = now + self.backoff.died(now - self._started)
        self.restarts += 1

    def stop(self) -> None:
        """End it by SIGTERM, then what it left behind; kill it if it does not end in time."""
        if self._handle is not None:
            if self.waiting:
                self._handle.kill()  # it has done nothing yet, and may not listen to signals
            elif self.process is not None:
                end(self.process, signal.SIGTERM, self.component.stop_seconds)
            self._handle.wait()
            self._bury()
        self.due = None

    def leave(self) -> None:
        """Let it serve those who use it and then end; or end it, if it cannot."""
        if self.component.drain is None or self.process is None:
            self.stop()
            return
        note_drained(self.pid_dir, self.process)
        self.process.send(self.component.drain)
        # Its output is still copied to the log, by a process that ends with it.
        self._handle = self._pump = self.process = self.due = None
        self.pid_file.unlink(missing_ok=True)
        self._close_input()

    def abandon(self) -> None:
        """Kill it alone, so that it has no time to end what outlives it."""
        if self._handle is not None:
            self._handle.kill()
            self._handle.wait()
            self._bury()
        self.due = None

    def _bury(self) -> None:
        if self.process is not None and not self.component.outlived:
            end_group(self.process)
        self._end_pump()
        if not self.waiting:
            self.pid_file.unlink(missing_ok=True)
        self._close_input()
        self._handle = None
        self.process = None
        self.waiting = False


def _take_signals() -> None:
    """Undo, in a child, that the supervisor holds signals back."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def end_stale(pid_dir: Path, outlived: Collection[str], stop_seconds: float = 5.0) -> list[str]:
    """End what a killed supervisor left running; the names of what there was.

    Components named in `outlived` are killed alone: asked to end, a launcher would end its
    sandboxes too.
    """
    found = []
    for path in sorted(pid_dir.glob("*.pid")):
        stale = read_pid_file(path)
        if stale is not None:
            if stale.alive():
                found.append(path.stem)
            retire(stale, outlived=path.stem in outlived, stop_seconds=stop_seconds)
        path.unlink(missing_ok=True)
    return found
