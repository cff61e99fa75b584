"""Work that takes long, done by a forked process beside the launcher."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from sandgate.runtime import linux

_FAILED = 255

_log = logging.getLogger(__name__)


def start(work: Callable[[], None]) -> tuple[int, int]:
    """Run `work` in a child; returns its pid and a pidfd, readable when it is done.

    The child dies with the launcher. :func:`outcome` says how it went.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run(work, parent)
    return pid, os.pidfd_open(pid)


def outcome(pid: int) -> str | None:
    """None if all went well, else what went wrong. The child has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == 0:
        return None
    return os.strerror(code) if 0 < code < _FAILED else "its helper process died"


def _run(work: Callable[[], None], parent: int) -> NoReturn:
    code = _FAILED
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        linux.die_with_parent()
        if os.getppid() == parent:
            work()
            code = 0
    except OSError as error:
        _log.error("%s", error, exc_info=True)
        code = error.errno or _FAILED
    finally:
        # The launcher's frames are below this one: nothing may unwind into them.
        os._exit(code)
