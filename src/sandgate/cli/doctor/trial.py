"""Trying something out for real, where it can do no harm: in a child, in namespaces of its own."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable

from sandgate.runtime import linux

_TIMEOUT = 30.0
_MAX_ANSWER = 4096


def trial(action: Callable[[], None], *, namespaces: int = 0) -> str | None:
    """Run `action` in a forked child that has joined new `namespaces` (CLONE_NEW* flags).

    None if it returned, else what it raised. Mounts it makes are not seen outside if CLONE_NEWNS
    is among the flags. It is killed after 30 seconds.
    """
    answer_read, answer_write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(answer_read)
            # What the action prints is no part of the report.
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            if namespaces:
                linux.unshare(namespaces)
            if namespaces & linux.CLONE_NEWNS:
                linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
            action()
            status = 0
        except BaseException as error:  # the child reports whatever happens, and ends here
            text = f"{error}" or type(error).__name__
            os.write(answer_write, text.encode()[:_MAX_ANSWER])
        finally:
            os._exit(status)
    os.close(answer_write)
    try:
        readable, _, _ = select.select([answer_read], [], [], _TIMEOUT)
        if not readable:
            os.kill(child, signal.SIGKILL)
            return f"no answer within {_TIMEOUT:g} s"
        said = os.read(answer_read, _MAX_ANSWER).decode(errors="replace")
    finally:
        os.close(answer_read)
        _, status = os.waitpid(child, 0)
    if status == 0:
        return None
    return said or f"ended with status {status}"
