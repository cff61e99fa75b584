"""The launcher's side of a zygote: a process of a template's own Python that forks interpreters.

It has imported all that running code takes, once for all sandboxes of the template: each gets a
fork, which shares that memory. It sees the template, read-only, no network, no file of the machine,
and keeps no more privileges than entering a sandbox takes. It runs no code of any sandbox.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import sandgate
from sandgate.runtime import linux

MAX_MESSAGE = 4096
PYTHON = "/usr/bin/python3"
CODE = "/run/sandgate"
"""Where a zygote finds this package; forks have imported it and see nothing of it."""
CONTROL_FD = 3
"""Of the zygote: SEQPACKET to the launcher."""
SECCOMP_FD = 4
"""Of the zygote: memory file with the filter of sandboxes."""

_PACKAGE = Path(sandgate.__file__).parent
_ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": CODE, "LC_ALL": "C.UTF-8"}
NAMESPACES = ("pid", "ipc", "uts", "net", "cgroup", "mnt", "user")
"""In the order in which they are joined, and in which their descriptors are passed."""


@dataclass(frozen=True, slots=True)
class Started:
    """A fork that entered its sandbox, or did not."""

    request: int
    error: str | None
    pid: int
    """0 if there is none."""
    pidfd: int | None
    """The receiver's to close."""


class Zygote:
    """One zygote. Start requests may be sent at once; they wait until it has imported all."""

    def __init__(self, layers: Sequence[Path], scratch: Path, seccomp: bytes) -> None:
        """:param layers: of the template, topmost first.
        :param scratch: as :func:`sandgate.runtime.rootfs.prepare_scratch` made it.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        program = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        parent = os.getpid()
        try:
            os.write(program, seccomp)
            self.pid = os.fork()
            if self.pid == 0:
                _become(layers, scratch, theirs.fileno(), program, parent)
        finally:
            theirs.close()
            os.close(program)
        ours.setblocking(False)
        self.channel = ours

    def start(self, request: int, envd: int, door: int, groups: Sequence[str]) -> None:
        """Ask for an interpreter. Raises OSError.

        :param envd: pid of the sandbox's first process.
        :param door: its listening socket.
        :param groups: files to write to in order to join its control groups.
        """
        opened: list[int] = []
        try:
            wanted = [(f"/proc/{envd}/ns/{kind}", os.O_RDONLY) for kind in NAMESPACES]
            for path, way in [*wanted, *((path, os.O_WRONLY) for path in groups)]:
                opened.append(os.open(path, way | os.O_CLOEXEC))
            message = json.dumps({"id": request}).encode()
            socket.send_fds(self.channel, [message], [door, *opened])
        finally:
            for fd in opened:
                os.close(fd)

    def hear(self) -> Started | None:
        """The next answer; None if the zygote is gone."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self.channel, MAX_MESSAGE, 1)
        except OSError:
            return None
        if not message:
            return None
        answer = json.loads(message)
        pidfd = descriptors[0] if descriptors else None
        return Started(answer["id"], answer["error"], answer["pid"], pidfd)

    def end(self) -> None:
        """Kill it. Its forks live on."""
        self.channel.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _become(
    layers: Sequence[Path], scratch: Path, channel: int, program: int, parent: int
) -> NoReturn:
    """In the child: enter the template and run its Python."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        linux.die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        # Above those that it is to have, so that the second copy does not overwrite a source.
        moved = [os.dup(fd) for fd in (channel, program)]
        while min(moved) <= SECCOMP_FD:
            moved = [os.dup(fd) for fd in moved]
        os.dup2(moved[0], CONTROL_FD)
        os.dup2(moved[1], SECCOMP_FD)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1):
            os.dup2(null, fd)  # what it says on standard error is the launcher's log
        linux.close_all_but({CONTROL_FD, SECCOMP_FD})
        linux.unshare(
            linux.CLONE_NEWNS | linux.CLONE_NEWNET | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS
        )
        _enter_template(layers, scratch)
        os.execve(PYTHON, ["python3", "-m", "sandgate.interpreter"], _ENVIRONMENT)  # noqa: S606 - fixed words
    except BaseException as error:
        os.write(2, f"an interpreter's zygote could not start: {error}\n".encode())
    finally:
        # The launcher's frames are below this one: nothing may unwind into them.
        os._exit(1)


def _enter_template(layers: Sequence[Path], scratch: Path) -> None:
    read_only = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV
    os.chdir(scratch)
    # An empty layer below, for overlayfs wants two.
    lower = ":".join([*map(str, layers), "layer0"])
    linux.mount("overlay", "root", "overlay", read_only, f"lowerdir={lower}")
    linux.mount("proc", "root/proc", "proc", read_only | linux.MS_NOEXEC)
    linux.mount("tmpfs", "root/run", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=64k,mode=755")
    os.makedirs(f"root{CODE}/sandgate")
    linux.mount(str(_PACKAGE), f"root{CODE}/sandgate", None, linux.MS_BIND)
    linux.mount(None, f"root{CODE}/sandgate", None, linux.MS_BIND | linux.MS_REMOUNT | read_only)
    linux.mount("tmpfs", "root/dev", "tmpfs", linux.MS_NOSUID, "size=4k,mode=755")
    os.mknod("root/dev/null", 0o020666, os.makedev(1, 3))
    os.mknod("root/dev/urandom", 0o020666, os.makedev(1, 9))
    os.chdir("root")
    linux.pivot_root(".", ".")
    linux.unmount(".", linux.MNT_DETACH)
    os.chdir("/")
