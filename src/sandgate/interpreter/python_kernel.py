"""A Python kernel: ipykernel, already imported, in a process forked for it."""

from __future__ import annotations

import importlib
import json
import mmap
import os
import signal
import site
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

# Its debugger takes 70 ms to import and nobody can reach it.
sys.modules["debugpy"] = None  # type: ignore[assignment]  # how Python spells "not installed"
import ipykernel.debugger  # noqa: E402, F401

del sys.modules["debugpy"]

import zmq  # noqa: E402
from ipykernel.iostream import OutStream  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.kernelapp import IPKernelApp  # noqa: E402
from jupyter_client.jsonutil import json_default  # noqa: E402

from sandgate.interpreter import display  # noqa: E402
from sandgate.interpreter.entry import KERNEL_OOM_DISTANCE, raise_oom_score  # noqa: E402
from sandgate.interpreter.messages import finite  # noqa: E402

ENVIRONMENT_KEY = "sandgate_env"
"""In the metadata of a request: variables that are set during this execution."""
LASTING_KEY = "sandgate_lasting"
"""Likewise: variables that are set from now on."""
PORTS = {
    name: number for number, name in enumerate(("shell", "iopub", "stdin", "hb", "control"), 1)
}
"""Not ports: numbers that end the names of the kernel's sockets."""
READY = b"1"
_MAX_REASON = 2000
_WINDOW = 8 << 20
"""Characters of output that may be under way. More would pile up in memory."""
_NAP_S = 0.002
_STATE = "/dev/shm/ipython"  # noqa: S108 - of a sandbox, where nobody else is
"""In memory: what IPython keeps for itself must not depend on room on the disk."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One kernel."""

    name: str
    """Prefix of its abstract sockets: no file is needed, so no disk can be too full for them."""
    key: str
    cwd: str
    env: dict[str, str]


def run(spec: Spec, ready: int, window: int) -> NoReturn:
    """Be a kernel. :data:`READY` is written to `ready` when it listens, or why it does not.

    :param window: memory file of 8 bytes: how many characters of output were taken so far.
    """
    try:
        app = _prepare(spec, window)
    except BaseException as error:
        os.write(ready, f"{type(error).__name__}: {error}"[:_MAX_REASON].encode())
        raise
    os.write(ready, READY)
    os.close(ready)
    app.start()
    os._exit(0)


def _prepare(spec: Spec, window: int) -> _App:
    raise_oom_score("self", KERNEL_OOM_DISTANCE)
    os.environ.update(spec.env)
    os.chdir(spec.cwd)
    _restore_paths()
    ThrottledStream.taken = mmap.mmap(window, 8)
    os.close(window)
    os.makedirs(_STATE, exist_ok=True)
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # no room to try it; without a name, nothing at all could be run
        tempfile.tempdir = "/tmp"  # noqa: S108 - as above
    os.environ["IPYTHONDIR"] = _STATE
    app: _App = _App.instance(transport="ipc", ip=f"@{spec.name}", log_level="ERROR")
    app.config.HistoryManager.enabled = False
    app.session.key = spec.key.encode()
    app.session.pack = _pack
    for channel, number in PORTS.items():
        setattr(app, f"{channel}_port", number)
    app.initialize([])
    display.install(app.shell)
    # What the user imports is the user's: ours must not be found in its place.
    for name in [name for name in sys.modules if name.partition(".")[0] == "sandgate"]:
        del sys.modules[name]
    return app


def _restore_paths() -> None:
    """Make the interpreter look as if it had been started here."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [""]
    sys.path.insert(0, "")
    os.environ.setdefault("HOME", "/root")
    site.ENABLE_USER_SITE = True
    site.USER_SITE = site.USER_BASE = None
    own = site.getusersitepackages()
    if own not in sys.path:
        # pip may make it later, and what it installs shall be found at once.
        sys.path.append(own)
    importlib.invalidate_caches()


class ThrottledStream(OutStream):
    """Standard output or error: in order with the other one, and never too much under way."""

    taken: mmap.mmap | None = None
    _sent = 0
    _last: ThrottledStream | None = None

    def write(self, string: str) -> int | None:
        """As of files."""
        if self.taken is None or os.getpid() != self._master_pid:
            return self._write(string)
        last, ThrottledStream._last = ThrottledStream._last, self
        if last is not None and last is not self:
            last.flush()
        written = self._write(string)
        ThrottledStream._sent += len(string)
        while ThrottledStream._sent - struct.unpack("Q", self.taken[:8])[0] > _WINDOW:
            time.sleep(_NAP_S)
        return written

    def _write(self, string: str) -> int | None:
        written: int | None = super().write(string)
        return written


def _pack(message: object) -> bytes:
    """A message in JSON. What JSON has no word for becomes null or "?"."""
    try:
        text = json.dumps(message, default=json_default, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(message), default=json_default, ensure_ascii=False)
    return text.encode(errors="replace")


class _Kernel(IPythonKernel):
    async def do_execute(self, code: str, silent: bool, *args: Any, **options: Any) -> Any:
        meta = options.get("cell_meta") or {}
        os.environ.update(meta.get(LASTING_KEY) or {})
        with _environment(meta.get(ENVIRONMENT_KEY) or {}):
            return await super().do_execute(code, silent, *args, **options)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _App(IPKernelApp):
    """Without connection files, and with sockets that lose nothing."""

    kernel_class = _Kernel
    outstream_class = f"{__name__}.ThrottledStream"

    def parse_command_line(self, argv: object = None) -> None:
        """There is none."""

    def init_heartbeat(self) -> None:
        """Whoever started this process sees it die."""

    def init_connection_file(self) -> None:
        """All is known already."""

    def write_connection_file(self, **_: Any) -> None:
        """Nobody reads one."""

    def log_connection_info(self) -> None:
        """Nobody reads it."""
        self._ports = PORTS

    def _bind_socket(self, socket: zmq.Socket[Any], port: int) -> int:
        # By default ZeroMQ drops what exceeds 1000 messages.
        socket.sndhwm = socket.rcvhwm = 0
        return int(super()._bind_socket(socket, port))
