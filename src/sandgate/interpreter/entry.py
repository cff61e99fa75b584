"""From the zygote into a sandbox. Runs in the fork only, before anything of the sandbox does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sandgate.runtime import linux
from sandgate.runtime.privileges import drop_powers

_FLAGS = {
    "ipc": linux.CLONE_NEWIPC,
    "uts": linux.CLONE_NEWUTS,
    "net": linux.CLONE_NEWNET,
    "cgroup": linux.CLONE_NEWCGROUP,
    "mnt": linux.CLONE_NEWNS,
}
_OOM_SCORE = "400"
"""Above that of the sandbox's first process: when memory is short, that one lives."""
KERNEL_OOM_DISTANCE = 200
"""Of kernels above their server."""
_MAX_OOM_SCORE_ADJ = 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What the fork is given, by descriptor."""

    door: int
    """Listening socket of the interpreter."""
    namespaces: Mapping[str, int]
    groups: Sequence[int]
    """Files to write to in order to join the sandbox's control groups."""
    seccomp: bytes
    then: Callable[[int], NoReturn]
    """What it becomes, given the door."""


def run(plan: Plan) -> NoReturn:
    """Become the sandbox's interpreter. Never returns."""
    try:
        _enter(plan)
        plan.then(plan.door)
    finally:
        # The zygote's frames are below this one: nothing may unwind into them.
        os._exit(1)


def _enter(plan: Plan) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Of the zygote's own view: what has this name in the sandbox, its root may have put there.
    null = os.open("/dev/null", os.O_RDWR)
    linux.close_all_but({null, plan.door, *plan.namespaces.values(), *plan.groups})
    for fd in plan.groups:
        os.write(fd, b"0")
        os.close(fd)
    for kind, flag in _FLAGS.items():
        linux.setns(plan.namespaces[kind], flag)
    for kind, fd in plan.namespaces.items():
        if kind != "user":
            os.close(fd)
    os.chdir("/")
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.setsid()
    os.umask(0o022)
    drop_powers(plan.namespaces["user"], plan.seccomp)
    # Nothing secret is in this memory, and programs expect to be able to look at themselves.
    linux.set_dumpable(True)
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def raise_oom_score(process: int | str, distance: int) -> None:
    """Have the kernel end this process rather than others when memory is short."""
    score = Path(f"/proc/{process}/oom_score_adj")
    score.write_text(str(min(int(score.read_text()) + distance, _MAX_OOM_SCORE_ADJ)))
