"""All commands of the sandbox, and the reaping of every orphan in it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

from sandgate.envd.connect import Code, ConnectError
from sandgate.envd.process import Process, ProcessConfig
from sandgate.envd.spawn import Command, spawn

_RETENTION = 30.0
_MAX_RETAINED = 4096


@dataclass(frozen=True, slots=True)
class Selector:
    """How a client names a process: by one of the two."""

    pid: int | None
    tag: str | None

    def matches(self, pid: int, tag: str | None) -> bool:
        """Whether this selects the process with that pid and tag."""
        return pid == self.pid if self.pid is not None else tag == self.tag

    def __str__(self) -> str:
        return f"pid {self.pid}" if self.pid is not None else f"tag {self.tag}"


@dataclass(frozen=True, slots=True)
class Ended:
    """What is left of a process for half a minute after its end."""

    pid: int
    tag: str | None
    end: bytes
    """The `end` frame."""


class ProcessTable:
    """Commands started by clients. The daemon is PID 1, so it waits for all others as well."""

    def __init__(self) -> None:
        self._oom_score_adj = 0
        self._running: dict[int, Process] = {}
        self._unreaped: dict[int, Process] = {}
        self._ended: dict[int, Ended] = {}

    def open(self, oom_score_adj: int) -> None:
        """Begin, in the event loop that runs.

        :param oom_score_adj: of every command, see proc(5).
        """
        self._oom_score_adj = oom_score_adj
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    def __iter__(self) -> Iterator[Process]:
        return iter(list(self._running.values()))

    def start(self, command: Command, config: ProcessConfig) -> Process:
        """Start a command.

        :raises SpawnError: if it cannot be set up.
        :raises OSError: if descriptors or processes have run out.
        """
        process = Process(spawn(command, self._oom_score_adj), config, self._retain)
        self._running[process.pid] = self._unreaped[process.pid] = process
        self._ended.pop(process.pid, None)
        if config.tag is not None:
            for ended in [e for e in self._ended.values() if e.tag == config.tag]:
                del self._ended[ended.pid]
        return process

    def find(self, selector: Selector) -> Process:
        """The running process that `selector` names.

        :raises ConnectError: `not_found`.
        """
        process = self._lookup(selector)
        if process is None:
            raise ConnectError(Code.NOT_FOUND, f"process with {selector} not found")
        return process

    def find_or_ended(self, selector: Selector) -> Process | Ended:
        """Like :meth:`find`, but knows also those that ended up to 30 s ago."""
        process = self._lookup(selector)
        if process is not None:
            return process
        for ended in self._ended.values():
            if selector.matches(ended.pid, ended.tag):
                return ended
        return self.find(selector)

    def _lookup(self, selector: Selector) -> Process | None:
        if selector.pid is not None:
            return self._running.get(selector.pid)
        running = self._running.items()
        return next((p for pid, p in running if selector.matches(pid, p.config.tag)), None)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            process = self._unreaped.pop(pid, None)
            if process is not None:
                process.exited(status)

    def _retain(self, process: Process, end: bytes) -> None:
        # A process may have got the pid while descendants kept the old one's pipes open.
        if self._running.get(process.pid) is not process:
            return
        del self._running[process.pid]
        ended = Ended(process.pid, process.config.tag, end)
        self._ended[process.pid] = ended
        asyncio.get_running_loop().call_later(_RETENTION, self._forget, ended)
        if len(self._ended) > _MAX_RETAINED:
            del self._ended[next(iter(self._ended))]

    def _forget(self, ended: Ended) -> None:
        if self._ended.get(ended.pid) is ended:
            del self._ended[ended.pid]
