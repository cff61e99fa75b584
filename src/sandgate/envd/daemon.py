"""The daemon's life: made ready in the launcher, forked into the sandbox, never ending."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import setproctitle
from aiohttp import web

from sandgate.envd.blank import Blank
from sandgate.envd.config import EnvdConfig
from sandgate.envd.connect import Code
from sandgate.envd.metrics import Gauge
from sandgate.envd.signals import ENDING_SIGNAL, PAUSING_SIGNAL
from sandgate.envd.small_files import overwrite
from sandgate.envd.spawn import reset_signals
from sandgate.envd.warmup import warm_up

_FAREWELLS = {
    ENDING_SIGNAL: "The sandbox was killed or reached its end of life",
    PAUSING_SIGNAL: "The sandbox was paused",
}
"""What the clients of open streams are told. The SDKs look the sandbox up then, or show it."""
LISTEN_BACKLOG = 1024
"""Connections that may wait to be accepted, here and at the interpreter's port."""
_OOM_DISTANCE = 300
_MAX_OOM_SCORE_ADJ = 1000
_EXIT_FAILED = 70
_PR_SET_DUMPABLE = 4
_CLOSE_RANGE_CLOEXEC = 4
_ALL_DESCRIPTORS = (3, 0xFFFF_FFFF)
_LATE_IMPORTS = (
    "email.utils",
    "encodings.idna",
    "encodings.ascii",
    "encodings.latin_1",
    "encodings.utf_8",
    "encodings.unicode_escape",
    "mimetypes",
    "stringprep",
    "traceback",
    "linecache",
    "_strptime",
)
"""What the libraries import only when they first need it; in the sandbox it is too late."""

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_close_range = _libc.close_range
_close_range.argtypes = (ctypes.c_uint, ctypes.c_uint, ctypes.c_int)


def preload() -> None:
    """Import all that the daemon will ever need, and use it once.

    To be called by root, before forking and pivot_root, with no event loop and no children.
    """
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    warm_up()


def serve(
    config: EnvdConfig, listener: socket.socket, gauge: Gauge, ready: Callable[[], None]
) -> NoReturn:
    """Be the daemon, for ever, in a process that was just forked.

    :param listener: a bound, listening TCP socket.
    :param gauge: tells what the sandbox uses.
    :param ready: called once when requests are accepted.
    """
    blank = Blank()
    blank.prepare()
    Standby(blank, listener, gauge).serve(config, ready)


class Standby:
    """A daemon that is complete but for its configuration, in a process that was just forked.

    Made while nobody waits, so that somebody who does waits less.
    """

    def __init__(self, blank: Blank, listener: socket.socket, gauge: Gauge) -> None:
        """:param blank: prepared, and its loop renewed after a fork.

        The others: see :func:`serve`.
        """
        assert blank.inherited is not None
        _become_daemon()
        self._blank = blank
        self._blank.gauge = gauge
        self._listener = listener
        self._loop = blank.inherited.loop
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._prepare())

    async def _prepare(self) -> None:
        own_score = int(Path("/proc/self/oom_score_adj").read_text())
        self._blank.processes.open(min(own_score + _OOM_DISTANCE, _MAX_OOM_SCORE_ADJ))
        loop = asyncio.get_running_loop()
        for number, text in _FAREWELLS.items():
            loop.add_signal_handler(number, self._blank.streams.end_all, Code.UNAVAILABLE, text)
        self._blank.users.find("")  # reads the files, which are the sandbox's own

    def serve(self, config: EnvdConfig, ready: Callable[[], None]) -> NoReturn:
        """Be the daemon, for ever. `ready` is called once when requests are accepted."""
        try:
            self._loop.run_until_complete(self._run(config, ready))
        except BaseException as exc:
            # Nothing of the launcher's code may go on in this process, so this is not raised.
            sys.excepthook(type(exc), exc, exc.__traceback__)
        finally:
            os._exit(_EXIT_FAILED)

    async def _run(self, config: EnvdConfig, ready: Callable[[], None]) -> None:
        self._blank.identity.assume(config)
        # asyncio takes `backlog` also for how often to try when no descriptor is left, each time
        # with a traceback; how many there are is for root inside to say.
        await web.SockSite(self._blank.server, self._listener, backlog=1).start()
        self._listener.listen(LISTEN_BACKLOG)
        ready()
        _write_identity(config)
        await self._loop.create_future()


def _become_daemon() -> None:
    """Shed what comes from the launcher."""
    gc.freeze()
    reset_signals()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    os.chdir("/")
    # The memory is the launcher's: no process of the sandbox, its root included, may read it.
    if _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
    # Nor may a command inherit a descriptor that the launcher left inheritable by mistake.
    if _close_range(*_ALL_DESCRIPTORS, _CLOSE_RANGE_CLOEXEC) != 0:
        raise OSError(ctypes.get_errno(), "close_range")
    setproctitle.setproctitle("envd")


def _write_identity(config: EnvdConfig, directory: str = "/run/e2b") -> None:
    """Files by which programs in the sandbox can tell where they are, as in E2B."""
    files = {
        ".E2B_SANDBOX": "true",
        ".E2B_SANDBOX_ID": config.sandbox_id,
        ".E2B_TEMPLATE_ID": config.template_id,
    }
    # A sandbox without a writable /run does without.
    with suppress(OSError):
        os.makedirs(directory, exist_ok=True)
        for name, value in files.items():
            overwrite(f"{directory}/{name}", value)
