"""`GET /metrics`: what the sandbox sees of processor, memory and disk.

These are the figures of the /proc that the sandbox has. Its limits are kept by the node from
outside, and so are the figures that the REST API gives.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

_MIB = 1 << 20


class Metrics:
    """Reads them; keeps the processor times of the last call to tell the load since."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._last = (0, 0)

    def read(self) -> dict[str, Any]:
        """The body of `/metrics`.

        :raises OSError: if /proc cannot be read.
        """
        memory = parse_meminfo((self._proc / "meminfo").read_text())
        total, available = memory.get("MemTotal", 0), memory.get("MemAvailable", 0)
        used = max(0, total - available)
        disk = os.statvfs("/")
        return {
            "ts": int(time.time()),
            "cpu_count": os.cpu_count() or 1,
            "cpu_used_pct": self._cpu_used(),
            "mem_total": total,
            "mem_used": used,
            "mem_cache": memory.get("Cached", 0),
            "mem_total_mib": total // _MIB,
            "mem_used_mib": used // _MIB,
            "disk_used": (disk.f_blocks - disk.f_bavail) * disk.f_frsize,
            "disk_total": disk.f_blocks * disk.f_frsize,
        }

    def _cpu_used(self) -> float:
        busy, total = parse_cpu_times((self._proc / "stat").read_text())
        last_busy, last_total = self._last
        self._last = (busy, total)
        passed = total - last_total
        return round(100 * (busy - last_busy) / passed, 2) if last_total and passed > 0 else 0.0


def parse_meminfo(text: str) -> dict[str, int]:
    """Bytes by name, from /proc/meminfo."""
    sizes = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        number = value.split()[:1]
        if number and number[0].isdigit():
            sizes[name] = int(number[0]) * 1024
    return sizes


def parse_cpu_times(text: str) -> tuple[int, int]:
    """Busy and all ticks of all processors, from /proc/stat."""
    ticks = [int(field) for field in text.partition("\n")[0].split()[1:9]]
    idle = sum(ticks[3:5])
    return sum(ticks) - idle, sum(ticks)
