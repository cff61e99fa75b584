"""One command under the daemon: its output on the way to subscribers, its input, its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from base64 import b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from sandgate.envd.connect import Code, ConnectError, encode_frame
from sandgate.envd.pacing import Pace
from sandgate.envd.spawn import Channel, Spawned, TerminalSize, set_terminal_size

_CHUNK = {Channel.STDOUT: 32 << 10, Channel.STDERR: 32 << 10, Channel.PTY: 16 << 10}
_QUEUE_HIGH = 256 << 10
_QUEUE_LOW = 64 << 10
_FINAL_DRAIN = 1 << 20
KEEPALIVE = encode_frame(b'{"event":{"keepalive":{}}}')


def encode_padding(size: int) -> bytes:
    """A keepalive frame of exactly `size` bytes, from some 30 on."""
    text = b'{"event":{"keepalive":{}}'
    return encode_frame(text.ljust(size - 6) + b"}")


def encode_start(pid: int) -> bytes:
    """The first frame of every process stream."""
    return encode_frame(b'{"event":{"start":{"pid":%d}}}' % pid)


def _encode_data(channel: Channel, data: bytes) -> bytes:
    return encode_frame(
        b'{"event":{"data":{"%s":"%s"}}}' % (channel.value.encode(), b64encode(data))
    )


def encode_exit(status: int) -> bytes:
    """The `end` frame for a wait(2) status, worded as Go's os/exec words it."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        text = f"exit status {code}"
        end: dict[str, object] = {"exitCode": code, "exited": True, "status": text}
    else:
        text = f"signal: {_signal_text(-code)}"
        if os.WCOREDUMP(status):
            text += " (core dumped)"
        end = {"exitCode": -1, "status": text}
    if code:
        end["error"] = text
    return encode_frame(json.dumps({"event": {"end": end}}).encode())


def _signal_text(number: int) -> str:
    text = signal.strsignal(number) or f"signal {number}"
    return text if text[1:2].isupper() or text[1:2] == "/" else text[0].lower() + text[1:]


@dataclass(frozen=True, slots=True)
class ProcessConfig:
    """What a client asked to run, as `List` reports it."""

    cmd: str
    args: list[str]
    envs: dict[str, str]
    cwd: str | None
    tag: str | None


class Subscription:
    """Frames on their way to one client. Bounded: the command waits when it is full."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        self._on_room = on_room
        self._frames: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def full(self) -> bool:
        """Whether output should be held back."""
        return self._size >= _QUEUE_HIGH

    @property
    def over(self) -> bool:
        """Whether :meth:`next` has returned all that there will be."""
        return self._ended and not self._frames

    def push(self, frame: bytes) -> None:
        """Add a frame."""
        self._frames.append(frame)
        self._size += len(frame)
        self._wake()

    def end(self) -> None:
        """No frame will follow those that are queued."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, keepalive: float) -> bytes | None:
        """Frames to send now, None after the last.

        :param keepalive: seconds of silence after which a keepalive frame is returned.
        """
        if not self._frames and not self._ended:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(keepalive, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
            if not self._frames and not self._ended:
                return KEEPALIVE
        if not self._frames:
            return None

        taken: list[bytes] = []
        size = 0
        while self._frames and size < _QUEUE_LOW:
            taken.append(self._frames.popleft())
            size += len(taken[-1])
        was_full = self._size >= _QUEUE_LOW
        self._size -= size
        if was_full and self._size < _QUEUE_LOW:
            self._on_room()
        return b"".join(taken)


@dataclass(slots=True)
class _Output:
    """Descriptors that are still open for reading."""

    fds: dict[int, Channel]
    pace: Pace = field(default_factory=Pace)
    full: bool = False
    """Whether a subscriber has as much as it may."""
    resting: bool = False
    """Whether the pipes are left alone until there is more in them."""
    subscriptions: set[Subscription] = field(default_factory=set)


class Process:
    """A running command.

    Output goes to whoever subscribes, and is read and dropped while no one does. The end is told
    when the command has exited and its pipes are closed by all its descendants, or, once it was
    signalled, as soon as it has exited. Must be used from the event loop's thread.
    """

    def __init__(
        self, spawned: Spawned, config: ProcessConfig, on_end: Callable[[Process, bytes], None]
    ) -> None:
        """:param on_end: called once with the `end` frame, before subscribers see it."""
        self.pid = spawned.pid
        self.config = config
        self.has_terminal = Channel.PTY in spawned.output_fds.values()
        self._loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._input_fd = spawned.input_fd
        self._input_lock = asyncio.Lock()
        self._input_waiter: asyncio.Future[None] | None = None
        self._output = _Output(dict(spawned.output_fds))
        self._status: int | None = None
        self._signalled = False
        self._deadline: asyncio.TimerHandle | None = None
        self._ended = False
        self.gone = asyncio.Event()
        """Set at the end, when this is no longer one of the running processes."""
        self._listen()

    # -- output

    def subscribe(self) -> Subscription:
        """Receive all output from now on."""
        subscription = Subscription(self._resume)
        self._output.subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop receiving; the command goes on."""
        self._output.subscriptions.discard(subscription)
        self._resume()

    def _resume(self) -> None:
        out = self._output
        if out.full and not any(s.full for s in out.subscriptions):
            out.full = False
            self._listen()

    def _pause(self) -> None:
        if not self._output.full:
            self._output.full = True
            self._look_away()

    def _rest(self, seconds: float) -> None:
        if not self._output.resting:
            self._output.resting = True
            self._look_away()
            self._loop.call_later(seconds, self._rested)

    def _rested(self) -> None:
        self._output.resting = False
        self._listen()

    def _listen(self) -> None:
        out = self._output
        if not (out.full or out.resting):
            for fd in out.fds:
                self._loop.add_reader(fd, self._read, fd)

    def _look_away(self) -> None:
        for fd in self._output.fds:
            self._loop.remove_reader(fd)

    def _read(self, fd: int) -> bool:
        """Take one chunk; False if there is none at the moment."""
        channel = self._output.fds[fd]
        try:
            data = os.read(fd, _CHUNK[channel])
        except BlockingIOError:
            return False
        except OSError:  # EIO: the last process has let go of the terminal
            data = b""
        if data:
            self._publish(channel, data)
            if (seconds := self._output.pace.pause_after(len(data), self._loop.time())) > 0:
                self._rest(seconds)
            return True

        self._close_output(fd)
        self._end_if_done()
        return False

    def _publish(self, channel: Channel, data: bytes) -> None:
        subscriptions = self._output.subscriptions
        if not subscriptions:
            return
        frame = _encode_data(channel, data)
        for subscription in subscriptions:
            subscription.push(frame)
        if any(s.full for s in subscriptions):
            self._pause()

    def _close_output(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        del self._output.fds[fd]
        # A terminal has one descriptor for both ways; closing it would hang up on the command.
        if fd != self._input_fd:
            os.close(fd)

    # -- input

    async def write(self, channel: Channel | None, data: bytes) -> None:
        """Write all of `data`, waiting while the command does not read.

        :param channel: `PTY`, or None for standard input.
        :raises ConnectError: `internal` if the command has no such input, or no longer.
        """
        wants_terminal = channel is Channel.PTY
        if wants_terminal and not self.has_terminal:
            raise _input_error("the process has no terminal; write to its stdin instead")
        if self.has_terminal and not wants_terminal:
            raise _input_error("the process has a terminal; write to its pty, not to its stdin")

        async with self._input_lock:
            view = memoryview(data)
            while view:
                if self._input_fd is None:
                    raise _input_error("stdin not enabled or closed")
                try:
                    view = view[os.write(self._input_fd, view) :]
                except BlockingIOError:
                    await self._wait_writable(self._input_fd)
                except OSError as exc:
                    message = f"error writing to process {self.pid}: {exc.strerror}"
                    raise _input_error(message) from exc

    async def _wait_writable(self, fd: int) -> None:
        waiter = self._loop.create_future()
        self._input_waiter = waiter
        self._loop.add_writer(fd, _set_done, waiter)
        try:
            await waiter
        finally:
            self._input_waiter = None
            if self._input_fd == fd:
                self._loop.remove_writer(fd)

    async def close_stdin(self) -> None:
        """Let the command read end-of-file. Does nothing if that has been done.

        :raises ConnectError: `unknown` if the command runs on a terminal.
        """
        if self.has_terminal:
            message = "cannot close the stdin of a process with a terminal; send Ctrl+D (0x04)"
            raise ConnectError(Code.UNKNOWN, message)
        async with self._input_lock:
            self._close_input()

    def _close_input(self) -> None:
        if self._input_fd is None:
            return
        fd, self._input_fd = self._input_fd, None
        if self._input_waiter is not None:
            self._loop.remove_writer(fd)
            _set_done(self._input_waiter)
        os.close(fd)

    def resize(self, size: TerminalSize) -> None:
        """Change the terminal's size.

        :raises ConnectError: `internal` if there is no terminal.
        """
        if not self.has_terminal or self._input_fd is None:
            raise ConnectError(Code.INTERNAL, "error resizing: the process has no terminal")
        set_terminal_size(self._input_fd, size)

    # -- end

    def kill_after(self, seconds: float) -> None:
        """Kill the command if it still runs then."""
        self._deadline = self._loop.call_later(seconds, self.send_signal, signal.SIGKILL)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal the command's process group, so that what a shell waits for ends as well.

        Descendants that made a session of their own live on, but no longer delay the end.
        """
        self._signalled = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        self._end_if_done()

    def exited(self, status: int) -> None:
        """The command has been reaped, with this wait(2) status."""
        self._status = status
        if self._output.resting:
            self._rested()  # no more will come of it
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._ended or self._status is None or (self._output.fds and not self._signalled):
            return
        self._ended = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._drain()
        self._close_input()
        end = encode_exit(self._status)
        self._on_end(self, end)
        self.gone.set()
        for subscription in self._output.subscriptions:
            subscription.push(end)
            subscription.end()

    def _drain(self) -> None:
        """Pass on what the pipes still hold, although others may go on writing to them."""
        for fd in list(self._output.fds):
            left = _FINAL_DRAIN
            while left > 0 and self._read(fd):
                left -= min(_CHUNK.values())
            if fd in self._output.fds:
                self._close_output(fd)


def _set_done(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _input_error(message: str) -> ConnectError:
    return ConnectError(Code.INTERNAL, message)
