"""`process.Process`: run commands, talk to them, see them end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from sandgate.envd.config import EnvdConfig
from sandgate.envd.connect import Code, ConnectError, Message, invalid
from sandgate.envd.paths import PathError, resolve
from sandgate.envd.process import Process, ProcessConfig, encode_padding, encode_start
from sandgate.envd.processes import Ended, ProcessTable, Selector
from sandgate.envd.rpc import Call, Reply
from sandgate.envd.spawn import Channel, Command, SpawnError, TerminalSize
from sandgate.envd.users import User

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SIGNALS = {"SIGNAL_UNSPECIFIED": 0, "SIGNAL_SIGTERM": 15, "SIGNAL_SIGKILL": 9}
_MAX_TERMINAL = 0xFFFF
_DEATH_SECONDS = 1.0
"""How long a killed process is waited for."""


class ProcessService:
    """The methods of the service; each takes a message and returns one, or sends frames."""

    def __init__(self, processes: ProcessTable) -> None:
        self._processes = processes

    async def start(self, call: Call, message: Message, reply: Reply) -> None:
        """`Start`: run a command and stream its output.

        The call's timeout is the command's: at its end the command is killed. A client that
        leaves does not end the command.
        """
        process = self._start(call, message)
        timeout = call.timeout()
        if timeout is not None:
            # Beside the call's own timeout, which ends with the client's connection.
            process.kill_after(timeout)
        await _follow(call, process, reply)

    def _start(self, call: Call, message: Message) -> Process:
        user = call.user()
        spec = message.required("process")
        config = ProcessConfig(
            cmd=spec.text("cmd"),
            args=spec.texts("args"),
            envs=spec.text_map("envs"),
            cwd=spec.optional_text("cwd"),
            tag=message.optional_text("tag"),
        )
        if not config.cmd:
            raise invalid("process.cmd is empty; name the program to run")
        pty = message.message("pty")
        command = Command(
            argv=[_clean("process.args", arg) for arg in (config.cmd, *config.args)],
            env=_environment(call.config, user, config.envs),
            cwd=_working_directory(config.cwd, user, call.config.default_workdir),
            user=user,
            terminal=None if pty is None else _terminal_size(pty),
            stdin=message.flag("stdin", default=True),
        )
        try:
            return self._processes.start(command, config)
        except SpawnError as exc:
            raise invalid(f"error starting process '{config.cmd}': {exc}") from exc
        except OSError as exc:
            text = f"error starting process '{config.cmd}': {exc.strerror}"
            raise ConnectError(Code.RESOURCE_EXHAUSTED, text) from exc

    async def connect(self, call: Call, message: Message, reply: Reply) -> None:
        """`Connect`: follow a command that runs, or learn how one ended a moment ago."""
        found = self._processes.find_or_ended(_selector(message))
        if isinstance(found, Ended):
            await reply.send(encode_start(found.pid) + found.end)
        else:
            await _follow(call, found, reply)

    async def list_(self, call: Call, message: Message) -> dict[str, Any]:
        """`List`: the commands that run, of those started here."""
        return {"processes": [_info(process) for process in self._processes]}

    async def update(self, call: Call, message: Message) -> dict[str, Any]:
        """`Update`: resize a terminal."""
        process = self._process(message)
        pty = message.message("pty")
        if pty is not None:
            process.resize(_terminal_size(pty))
        return {}

    async def send_input(self, call: Call, message: Message) -> dict[str, Any]:
        """`SendInput`: write to standard input or to the terminal."""
        await _write(self._process(message), message.required("input"))
        return {}

    async def stream_input(self, call: Call, messages: AsyncIterator[Message]) -> dict[str, Any]:
        """`StreamInput`: the same for a stream of messages, which names its process first."""
        process: Process | None = None
        async for message in messages:
            if "start" in message:
                process = self._process(message.required("start"))
            elif "data" in message:
                if process is None:
                    raise invalid("data came before start; name the process first")
                await _write(process, message.required("data").required("input"))
            elif "keepalive" not in message:
                raise ConnectError(Code.UNIMPLEMENTED, "expected start, data or keepalive")
        return {}

    async def send_signal(self, call: Call, message: Message) -> dict[str, Any]:
        """`SendSignal`: SIGTERM or SIGKILL, to the command's process group."""
        process = self._process(message)
        number = message.enum("signal", _SIGNALS)
        if number not in (signal.SIGTERM, signal.SIGKILL):
            text = f"invalid signal: {number}; use SIGNAL_SIGTERM or SIGNAL_SIGKILL"
            raise ConnectError(Code.UNIMPLEMENTED, text)
        process.send_signal(signal.Signals(number))
        if number == signal.SIGKILL:
            # Who asks once more, or lists the processes, finds it gone.
            with suppress(TimeoutError):
                await asyncio.wait_for(process.gone.wait(), _DEATH_SECONDS)
        return {}

    async def close_stdin(self, call: Call, message: Message) -> dict[str, Any]:
        """`CloseStdin`: end of file for the command."""
        await self._process(message).close_stdin()
        return {}

    def _process(self, message: Message) -> Process:
        return self._processes.find(_selector(message))


async def _follow(call: Call, process: Process, reply: Reply) -> None:
    subscription = process.subscribe()
    keepalive = call.keepalive()
    reply.fill_with(encode_padding)
    try:
        await reply.send(encode_start(process.pid))
        while (frames := await subscription.next(keepalive)) is not None:
            if subscription.over:
                reply.hold(frames)
            else:
                await reply.send(frames)
    finally:
        process.unsubscribe(subscription)


async def _write(process: Process, data: Message) -> None:
    if "pty" in data:
        await process.write(Channel.PTY, data.data("pty"))
    elif "stdin" in data:
        await process.write(None, data.data("stdin"))
    else:
        raise ConnectError(Code.UNIMPLEMENTED, "input must have stdin or pty")


def _selector(message: Message) -> Selector:
    process = message.required("process")
    if "pid" in process:
        return Selector(process.uint32("pid"), None)
    if "tag" in process:
        return Selector(None, process.text("tag"))
    raise invalid("process must have pid or tag")


def _terminal_size(pty: Message) -> TerminalSize:
    size = pty.message("size") or Message({})
    columns, rows = size.uint32("cols"), size.uint32("rows")
    if max(columns, rows) > _MAX_TERMINAL:
        raise invalid(f"pty.size of {columns} x {rows} is larger than {_MAX_TERMINAL} each way")
    return TerminalSize(columns, rows)


def _environment(sandbox: EnvdConfig, user: User, envs: Mapping[str, str]) -> dict[str, str]:
    for name, value in envs.items():
        _clean(f"process.envs['{name}']", value)
        if not _clean("process.envs", name) or "=" in name:
            raise invalid(f"process.envs: {name!r:.80} cannot be the name of a variable")
    defaults = {
        "PATH": _DEFAULT_PATH,
        "HOME": user.home,
        "USER": user.name,
        "LOGNAME": user.name,
    }
    return {**defaults, **sandbox.sandbox_env(), **envs}


def _working_directory(cwd: str | None, user: User, workdir: str | None) -> str:
    try:
        path = resolve(cwd or "", user, workdir)
    except PathError as exc:
        raise invalid(f"cwd: {exc}") from exc
    with suppress(FileNotFoundError):
        os.stat(path)
        return path
    raise invalid(f"cwd '{path}' does not exist")


def _clean(name: str, value: str) -> str:
    try:
        os.fsencode(value)
    except UnicodeEncodeError as exc:
        raise invalid(f"{name}: {value!r:.80} is not valid Unicode") from exc
    if "\0" in value:
        raise invalid(f"{name}: {value!r:.80} contains a NUL character")
    return value


def _info(process: Process) -> dict[str, Any]:
    config = process.config
    described: dict[str, Any] = {"cmd": config.cmd, "args": config.args, "envs": config.envs}
    if config.cwd is not None:
        described["cwd"] = config.cwd
    info: dict[str, Any] = {"config": described, "pid": process.pid}
    if config.tag is not None:
        info["tag"] = config.tag
    return info
