"""Reads what the machine has left. A reading takes some 100 µs; not allowed ones are None."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from sandgate.node.admission import Readings
from sandgate.node.groups import Groups

_FILES_EACH = 6
"""Descriptors that the launcher holds for a sandbox."""
_PERMANENT = 4
"""Flag of an entry of /proc/net/arp that was made by hand and is not limited (ATF_PERM)."""
_MIB = 1 << 20
_PART = 1 << 16


class MachineGauge:
    """The machine as the control process sees it, in its network namespace."""

    def __init__(self, data_dir: Path, proc: Path = Path("/proc")) -> None:
        self._data_dir = data_dir
        self._proc = proc
        self._groups = Groups(proc)

    def read(self, sandboxes: int) -> Readings:
        """What is left now. `sandboxes`: how many there are."""
        disk_mb, inodes = self._disk()
        around = self._groups.room()
        group_mb = None if around.memory is None else around.memory // _MIB
        return Readings(
            memory_mb=_least(self._memory(), group_mb),
            disk_mb=disk_mb,
            inodes=inodes,
            files=self._files(sandboxes),
            tasks=_least(self._tasks(), around.tasks),
            connections=self._connections(),
            neighbours=self._neighbours(),
        )

    def _memory(self) -> int | None:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", self._text("meminfo"), re.M)
        return int(found[1]) >> 10 if found else None

    def _disk(self) -> tuple[int | None, int | None]:
        try:
            found = os.statvfs(self._data_dir)
        except OSError:
            return None, None
        # Some file systems make inodes as they need them, and say that they have none.
        inodes = found.f_favail if found.f_files else None
        return found.f_bavail * found.f_frsize // _MIB, inodes

    def _files(self, sandboxes: int) -> int | None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = [limit - self._open_files(), limit - _FILES_EACH * sandboxes]
        if len(words := self._text("sys/fs/file-nr").split()) == 3:
            left.append(int(words[2]) - int(words[0]))
        return max(0, min(left))

    def _open_files(self) -> int:
        # The size of this directory is the number of its entries from Linux 6.2 on, 0 before.
        directory = self._proc / "self" / "fd"
        try:
            return directory.stat().st_size or len(list(directory.iterdir()))
        except OSError:
            return 0

    def _tasks(self) -> int | None:
        running = re.search(r"\d+/(\d+)", self._text("loadavg"))
        limits = [
            limit
            for name in ("sys/kernel/pid_max", "sys/kernel/threads-max")
            if (limit := self._number(name)) is not None
        ]
        return max(0, min(limits) - int(running[1])) if running and limits else None

    def _connections(self) -> int | None:
        most = self._number("sys/net/netfilter/nf_conntrack_max")
        count = self._number("sys/net/netfilter/nf_conntrack_count")
        return None if not most or count is None else max(0, most - count)

    def _neighbours(self) -> int | None:
        # Known in the machine's own network namespace only. Sandboxes' entries are permanent.
        most = self._number("sys/net/ipv4/neigh/default/gc_thresh3")
        if most is None:
            return None
        rows = [line.split() for line in self._text("net/arp").splitlines()[1:]]
        limited = sum(1 for row in rows if len(row) > 2 and not int(row[2], 16) & _PERMANENT)
        return max(0, most - limited)

    def _number(self, name: str) -> int | None:
        text = self._text(name).strip()
        return int(text) if text.isdigit() else None

    def _text(self, name: str) -> str:
        # Not Path.read_text: its layers would make four more system calls for each file.
        try:
            fd = os.open(f"{self._proc}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            parts = []
            while part := os.read(fd, _PART):
                parts.append(part)
        except OSError:
            return ""
        finally:
            os.close(fd)
        return b"".join(parts).decode()


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
