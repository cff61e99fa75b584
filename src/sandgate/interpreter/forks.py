"""The server's side of the nursery."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sandgate.interpreter.kernel import KernelStartError
from sandgate.interpreter.python_kernel import Spec

_MAX_MESSAGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Fork:
    """A forked kernel."""

    pid: int
    ended: asyncio.Future[int]
    """Its exit code or negative signal, once it has one."""


class Forks:
    """Asks the nursery for Python kernels and hears of their ends."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(channel, self._hear)
        self._ids = itertools.count(1)
        self._started: dict[int, asyncio.Future[int]] = {}
        self._ended: dict[int, asyncio.Future[int]] = {}
        self.lost = asyncio.Event()
        """Set when the nursery is gone, and all kernels with it."""

    async def start(self, spec: Spec, ready: int, window: int) -> Fork:
        """Fork a kernel; it listens when `ready` says so. Raises KernelStartError."""
        number = next(self._ids)
        started = self._started[number] = self._loop.create_future()
        ended = self._ended[number] = self._loop.create_future()
        message = json.dumps({"id": number, "spec": asdict(spec)}).encode()
        try:
            socket.send_fds(self._channel, [message], [ready, window])
            return Fork(await started, ended)
        except OSError as error:
            del self._ended[number]
            raise KernelStartError(f"no process could be made for a kernel: {error}") from error
        finally:
            del self._started[number]

    def _hear(self) -> None:
        try:
            message = self._channel.recv(_MAX_MESSAGE)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self._lose()
            return
        answer: dict[str, Any] = json.loads(message)
        if "ended" in answer:
            self._tell(
                self._ended.pop(answer["ended"], None), lambda f: f.set_result(answer["status"])
            )
        elif "error" in answer:
            error = OSError(answer["error"])
            self._tell(self._started.get(answer["id"]), lambda f: f.set_exception(error))
        else:
            self._tell(self._started.get(answer["id"]), lambda f: f.set_result(answer["pid"]))

    def _lose(self) -> None:
        self._loop.remove_reader(self._channel)
        self.lost.set()
        for ended in self._ended.values():
            self._tell(ended, lambda f: f.set_result(-signal.SIGKILL))
        error = OSError("the interpreter was killed")
        for started in self._started.values():
            self._tell(started, lambda f: f.set_exception(error))

    @staticmethod
    def _tell(
        future: asyncio.Future[int] | None, what: Callable[[asyncio.Future[int]], None]
    ) -> None:
        if future is not None and not future.done():
            what(future)
