"""Whether the machine and its owner have room for one more sandbox. Pure.

What is refused here is refused while there still is some of everything: the sandboxes that run
need it more than one that does not exist yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandgate.settings import Settings


@dataclass(frozen=True, slots=True)
class Readings:
    """What the machine has left. None: not limited, or not to be told."""

    memory_mb: int | None = None
    """MiB that processes can get without swapping, and within the node's control groups."""
    disk_mb: int | None = None
    """MiB free in the file system of `data_dir`."""
    inodes: int | None = None
    """Files that can still be made there."""
    files: int | None = None
    """Files that a process of the node can still open."""
    tasks: int | None = None
    """Processes and threads that can still be started."""
    connections: int | None = None
    """Free entries of the kernel's table of connections."""
    neighbours: int | None = None
    """Free entries of the kernel's table of neighbours."""


@dataclass(frozen=True, slots=True)
class Need:
    """What must be left of one thing, and what a sandbox that has just started takes of it."""

    name: str
    """The field of Readings."""
    reserve: int
    each: int
    what: str
    """In words, with `{}` for how much there is."""
    remedy: str
    storage: bool = False
    """Is it a matter of `data_dir` (507) and not of the moment (429)?"""


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why there is no room."""

    reason: str
    storage: bool


_END_SOME = "end some sandboxes"


def needs(settings: Settings) -> tuple[Need, ...]:
    """The needs of a node with these settings."""
    memory, disk = settings.memory_reserve_mb, settings.disk_reserve_mb
    return (
        Need(
            "memory_mb",
            memory,
            16,
            f"only {{}} MiB of the machine's memory are available, and {memory} stay reserved "
            "(memory_reserve_mb)",
            f"{_END_SOME}, add memory, or raise the limit of the control group that the node is in",
        ),
        Need(
            "disk_mb",
            disk,
            4,
            f"only {{}} MiB are free in data_dir, and {disk} stay reserved (disk_reserve_mb)",
            f"{_END_SOME}, delete snapshots, or make room there",
            storage=True,
        ),
        Need(
            "inodes",
            1000,
            4,
            "only {} more files can be made in data_dir (inodes)",
            "delete snapshots, or use a file system with more inodes",
            storage=True,
        ),
        Need(
            "files",
            256,
            8,
            "only {} more files can be opened",
            f"{_END_SOME}, or raise LimitNOFILE or fs.file-max",
        ),
        Need(
            "tasks",
            512,
            8,
            "only {} more processes and threads can be started on the machine",
            f"{_END_SOME}, or raise kernel.pid_max, kernel.threads-max or the limit "
            "of the control group that the node is in",
        ),
        Need(
            "connections",
            1024,
            8,
            "only {} entries are free in the machine's table of connections",
            f"{_END_SOME}, or raise net.netfilter.nf_conntrack_max",
        ),
        Need(
            "neighbours",
            32,
            1,
            "only {} entries are free in the machine's table of neighbours",
            "raise net.ipv4.neigh.default.gc_thresh3",
        ),
    )


def shortage(
    readings: Readings, wanted: tuple[Need, ...], *, unseen: int = 0, extra_disk_mb: int = 0
) -> Shortage | None:
    """What there is too little of for one more sandbox, or None.

    `unseen`: sandboxes that were admitted since the readings were taken. `extra_disk_mb`: what is
    about to be copied.
    """
    for need in wanted:
        found: int | None = getattr(readings, need.name)
        if found is None:
            continue
        left = max(0, found - unseen * need.each)
        taken = need.each + (extra_disk_mb if need.name == "disk_mb" else 0)
        if left - taken < need.reserve:
            copying = f" ({extra_disk_mb} MiB are to be copied)" if extra_disk_mb else ""
            reason = f"{need.what.format(left)}{copying if need.storage else ''}; {need.remedy}"
            return Shortage(reason, need.storage)
    return None
