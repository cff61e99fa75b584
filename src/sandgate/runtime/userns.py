"""User namespaces: root in a sandbox is an unprivileged user of the machine."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from sandgate.runtime import linux

IDS = 65536
"""User and group ids in one sandbox."""

_log = logging.getLogger(__name__)


class UserNamespaces:
    """Those of a node's slots: made once for each, and kept as long as this object."""

    def __init__(self, id_base: int, ahead: int) -> None:
        """:param id_base: the machine's id of root in slot 0.
        :param ahead: for so many slots more than were used, they may be made before they are.
        """
        self._id_base = id_base
        self._ahead = ahead
        self._limit = ahead
        self._made: dict[int, tuple[int, int]] = {}
        self._next = 0

    def base(self, slot: int) -> int:
        """The machine's id of the slot's root."""
        return self._id_base + slot * IDS

    def of(self, slot: int) -> tuple[int, int]:
        """The slot's own namespace, and the one its disk is mounted with. Raises OSError."""
        found = self._made.get(slot)
        if found is None:
            base = self.base(slot)
            own = create_user_namespace(base)
            try:
                found = self._made[slot] = own, create_user_namespace(base, with_root=True)
            except OSError:
                os.close(own)
                raise
        return found

    def used(self, slot: int) -> None:
        """Count on slots up to `ahead` above this one being used."""
        self._limit = max(self._limit, slot + 1 + self._ahead)

    def work_ahead(self) -> bool:
        """Make those of one slot more, while there is time. Returns whether there is another."""
        while self._next in self._made:
            self._next += 1
        if self._next >= self._limit:
            return False
        try:
            self.of(self._next)
        except OSError as error:
            _log.warning("no user namespaces are made ahead any more: %s", error)
            self._ahead = self._limit = 0
        return True


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
