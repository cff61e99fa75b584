"""Kernels that are a program: a process, what it prints, and the pipes to what drives it."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from sandgate.interpreter import environment
from sandgate.interpreter.entry import KERNEL_OOM_DISTANCE, raise_oom_score
from sandgate.interpreter.kernel import Emit, KernelDiedError, KernelStartError, how_it_ended
from sandgate.interpreter.messages import output

_CHUNK = 64 << 10


class Program:
    """A process in a session of its own. What it prints belongs to the current execution."""

    def __init__(self, pid: int, ended: asyncio.Future[int], pipes: Mapping[str, int]) -> None:
        """:param pipes: what is read from it: `stdout`, `stderr`, and `events` of its driver."""
        self.pid = pid
        self.ended = ended
        self.emit: Emit | None = None
        self._events = pipes["events"]
        self._outputs = [_Output(name, pipes[name]) for name in ("stdout", "stderr")]
        self._followers = [asyncio.create_task(self._follow(one)) for one in self._outputs]
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []
        for fd in pipes.values():
            os.set_blocking(fd, False)

    async def event(self) -> bytes:
        """The next line of the driver. Raises KernelDiedError when there is none any more."""
        while not self._lines:
            try:
                data = os.read(self._events, _CHUNK)
            except BlockingIOError:
                await _ready(self._events)
                continue
            if not data:
                await asyncio.wait([self.ended])
                raise KernelDiedError(how_it_ended(self.ended.result()))
            *whole, rest = data.split(b"\n")
            if whole:
                self._lines.append(b"".join([*self._rest, whole[0]]))
                self._lines.extend(whole[1:])
                self._rest.clear()
            self._rest.append(rest)
        return self._lines.popleft()

    async def drain(self) -> None:
        """Emit what has been printed up to now."""
        for one in self._outputs:
            while await self._print(one):
                pass

    def signal(self, number: signal.Signals) -> None:
        """Signal it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def kill(self) -> None:
        """End it, once."""
        self.signal(signal.SIGKILL)
        await asyncio.wait([self.ended])
        for task in self._followers:
            task.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)
        for fd in (self._events, *(one.fd for one in self._outputs)):
            os.close(fd)

    async def _follow(self, one: _Output) -> None:
        while not one.ended:
            await _ready(one.fd)
            await self._print(one)

    async def _print(self, one: _Output) -> bool:
        """Pass on a chunk of what is there; False if nothing is."""
        async with one.lock:
            try:
                data = os.read(one.fd, _CHUNK)
            except BlockingIOError:
                return False
            one.ended = not data
            text = one.decoder.decode(data)
            if text and self.emit is not None:
                await self.emit(output(one.name, text))
            return bool(data)


class _Output:
    """Standard output or error. What is read under the lock is emitted under it: in order."""

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.lock = asyncio.Lock()
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.ended = False


async def _ready(fd: int, *, to_write: bool = False) -> None:
    """Wait until something can be read from `fd`, or written to it."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    add, remove = (
        (loop.add_writer, loop.remove_writer) if to_write else (loop.add_reader, loop.remove_reader)
    )
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


async def start(
    argv: Callable[[int], Sequence[str]],
    cwd: str,
    env: Mapping[str, str],
    *,
    stdin: int = asyncio.subprocess.DEVNULL,
    descriptors: Sequence[int] = (),
) -> Program:
    """Start a program. Raises KernelStartError.

    :param argv: its words, given the number of the descriptor that its driver writes events to.
    :param descriptors: that it inherits.
    """
    pipes = {name: os.pipe2(os.O_CLOEXEC) for name in ("stdout", "stderr", "events")}
    events = pipes["events"][1]
    words = argv(events)
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=cwd,
            env={**environment.base(), **env},
            stdin=stdin,
            stdout=pipes["stdout"][1],
            stderr=pipes["stderr"][1],
            pass_fds=[events, *descriptors],
            start_new_session=True,
        )
    except OSError as error:
        for own, _ in pipes.values():
            os.close(own)
        raise KernelStartError(f"{words[0]} could not be started: {error}") from error
    finally:
        for _, theirs in pipes.values():
            os.close(theirs)
    with contextlib.suppress(OSError):  # it has ended already
        raise_oom_score(process.pid, KERNEL_OOM_DISTANCE)
    ended = asyncio.ensure_future(process.wait())
    return Program(process.pid, ended, {name: own for name, (own, _) in pipes.items()})


class Requests:
    """The writing end of a pipe to a program's driver."""

    def __init__(self) -> None:
        self.theirs, self._own = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._own, False)

    def passed(self) -> None:
        """The program has its end."""
        os.close(self.theirs)

    async def send(self, data: bytes) -> None:
        """Write all. Raises BrokenPipeError if the program does not read any more."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._own, view) :]
            except BlockingIOError:
                await _ready(self._own, to_write=True)

    def close(self) -> None:
        """No more will come."""
        os.close(self._own)
