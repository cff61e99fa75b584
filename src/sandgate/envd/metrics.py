"""`GET /metrics`: what the sandbox uses of processor, memory and disk, and what it may use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Measure:
    """What all of the sandbox uses at a moment. Sizes in bytes."""

    cpu_ns: int
    """Processor time since its start."""
    cpu_count: int
    """Processors that it may use."""
    memory: int
    """In use, without `cache`."""
    cache: int
    """Files that the kernel keeps in memory, and gives up when memory is short."""
    memory_limit: int


Gauge = Callable[[], Measure]
"""Reads them. Raises OSError. /proc has only the figures of the whole machine."""


class Metrics:
    """Reads them; keeps the processor time of the last call to tell the load since."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._last: tuple[int, int] | None = None
        """Nanoseconds: the time, and the processor time."""

    def read(self) -> dict[str, Any]:
        """The body of `/metrics`.

        :raises OSError: if there are no figures.
        """
        found = self._gauge()
        disk = os.statvfs("/")
        return {
            "ts": int(time.time()),
            "cpu_count": found.cpu_count,
            "cpu_used_pct": self._load(found),
            "mem_total": found.memory_limit,
            "mem_used": found.memory,
            "mem_cache": found.cache,
            "mem_total_mib": found.memory_limit // _MIB,
            "mem_used_mib": found.memory // _MIB,
            "disk_used": (disk.f_blocks - disk.f_bavail) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _load(self, found: Measure) -> float:
        """Percent of all its processors."""
        now = time.monotonic_ns()
        last, self._last = self._last, (now, found.cpu_ns)
        if last is None or now <= last[0]:
            return 0.0
        share = (found.cpu_ns - last[1]) / ((now - last[0]) * found.cpu_count)
        return round(100 * min(1.0, max(0.0, share)), 2)
