"""Reads from the files of a control group what it uses and may use, version 1 and version 2."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sandgate.envd.metrics import Measure

CPU_PERIOD_US = 10_000
"""Of a quota of processor time. A tenth of the kernel's own choice: whoever has used up what is due
to them leaves the processors to their neighbours, and those wait that much less for it."""
_MOST = 1 << 16
"""Bytes that are read of a file; the longest, memory.stat, has some 2,000."""

Read = Callable[[str], str]
"""The text of a file of the group, by its name."""


@dataclass(frozen=True, slots=True)
class GroupUsage:
    """What a group has used, and uses."""

    cpu_ns: int
    """Processor time since the group was made."""
    memory: int
    """Bytes in use, without `cache`."""
    cache: int
    """Bytes of files that the kernel keeps in memory, and gives up when memory is short."""


@dataclass(frozen=True, slots=True)
class GroupFormat:
    """How a version of control groups says these things."""

    files: tuple[str, ...]
    """All that `usage` and `limits` read."""
    usage: Callable[[Read], GroupUsage]
    limits: Callable[[Read], tuple[float, float]]
    """Processors and bytes of memory; infinite if nothing limits them."""


def _usage_v1(read: Read) -> GroupUsage:
    stat = _flat_keyed(read("memory.stat"))
    used = int(read("memory.usage_in_bytes"))
    # Shared memory counts as cache, yet is nothing that can be given up.
    cache = min(used, max(0, stat["total_cache"] - stat.get("total_shmem", 0)))
    return GroupUsage(int(read("cpuacct.usage")), used - cache, cache)


def _limits_v1(read: Read) -> tuple[float, float]:
    quota, period = int(read("cpu.cfs_quota_us")), int(read("cpu.cfs_period_us"))
    return (quota / period if quota > 0 else math.inf), int(read("memory.limit_in_bytes"))


def _usage_v2(read: Read) -> GroupUsage:
    stat = _flat_keyed(read("memory.stat"))
    used = int(read("memory.current"))
    # Shared memory and tmpfs count as `file`, yet are nothing that can be given up.
    cache = min(used, max(0, stat["file"] - stat["shmem"]))
    return GroupUsage(_flat_keyed(read("cpu.stat"))["usage_usec"] * 1000, used - cache, cache)


def _limits_v2(read: Read) -> tuple[float, float]:
    (quota, period), memory = read("cpu.max").split(), read("memory.max").strip()
    return (
        math.inf if quota == "max" else int(quota) / int(period),
        math.inf if memory == "max" else int(memory),
    )


V1 = GroupFormat(
    (
        *("memory.stat", "memory.usage_in_bytes", "memory.limit_in_bytes"),
        *("cpuacct.usage", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    ),
    _usage_v1,
    _limits_v1,
)
V2 = GroupFormat(
    ("memory.stat", "memory.current", "memory.max", "cpu.stat", "cpu.max"), _usage_v2, _limits_v2
)


class Meter:
    """The files of one group, held open: it can be read where they cannot be found any more."""

    def __init__(self, group: GroupFormat, paths: Mapping[str, Path]) -> None:
        """`paths` of all of the format's files. Raises OSError."""
        self._group = group
        self._files = {
            name: os.open(paths[name], os.O_RDONLY | os.O_CLOEXEC) for name in group.files
        }

    def read(self) -> Measure:
        """What the group uses and may use. Raises OSError when it is gone."""

        def text(name: str) -> str:
            return os.pread(self._files[name], _MOST, 0).decode()

        used = self._group.usage(text)
        processors, memory = self._group.limits(text)
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Measure(
            cpu_ns=used.cpu_ns,
            cpu_count=max(1, round(min(processors, os.cpu_count() or 1))),
            memory=used.memory,
            cache=used.cache,
            memory_limit=int(min(memory, machine)),
        )


def _flat_keyed(text: str) -> dict[str, int]:
    """Numbers by name, from a file that has a pair on each line."""
    pairs = (line.partition(" ") for line in text.splitlines())
    return {key: int(value) for key, _, value in pairs}
