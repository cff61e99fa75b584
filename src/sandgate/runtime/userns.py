"""User namespaces: root in a sandbox is an unprivileged user of the machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from sandgate.runtime import linux

IDS = 65536
"""User and group ids in one sandbox."""


def create_user_namespace(base: int, *, with_root: bool = False) -> int:
    """A namespace that maps ids 0..65535 to `base`.. of the machine. Returns its descriptor.

    `with_root`: 65536 stands for the machine's root. For mounts, not for processes: overlayfs
    makes some files of its own as whoever mounted it.

    A namespace needs a process to be made; it lives on as long as the descriptor. That process is
    `base`: some limits of the kernel (inotify instances, message queues, queued signals) count for
    the user who made a namespace, too, so with root as maker one sandbox could use up what all
    others and the machine's own services have.
    """
    ready_read, ready_write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            linux.keep_capabilities()  # some distributions let only CAP_SYS_ADMIN make one
            os.setresgid(base, base, base)
            os.setresuid(base, base, base)
            linux.unshare(linux.CLONE_NEWUSER)
            # It has copies of the launcher's descriptors, and with them holds the table of rules.
            linux.die_with_parent()
            if os.getppid() == parent:
                os.write(ready_write, b"1")
                signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    try:
        if os.read(ready_read, 1) != b"1":
            raise OSError("could not create a user namespace")
        for kind in ("uid_map", "gid_map"):
            root = f"\n{IDS} 0 1" if with_root else ""
            Path(f"/proc/{child}/{kind}").write_text(f"0 {base} {IDS}{root}")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready_read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
