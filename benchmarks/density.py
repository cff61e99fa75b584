"""Many sandboxes: how fast they come, what each takes, and what they cost the next one."""

from __future__ import annotations

import asyncio
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from e2b import AsyncSandbox, Sandbox

from benchmarks import policies
from benchmarks.report import Report, Row, median, percentile


def measure_burst(report: Report, count: int) -> None:
    """All at once."""

    async def one() -> float:
        begun = time.perf_counter()
        sandbox = await AsyncSandbox.create(timeout=120)
        await sandbox.commands.run("echo hello")
        took = time.perf_counter() - begun
        made.append(sandbox)
        return took

    async def burst() -> list[float]:
        times = await asyncio.gather(*(one() for _ in range(count)))
        for sandbox in made:
            await sandbox.kill()
        return times

    made: list[AsyncSandbox] = []
    times = asyncio.run(burst())
    aim = 1.0 if count == 100 else None
    report.add(
        "Burst",
        Row(f"{count} creates at once, p95 to first output", percentile(times, 0.95), "s", aim),
    )


def measure_sustained(report: Report, count: int) -> None:
    """One after the other by four clients, each ended when the next but some comes."""
    cores = len(os.sched_getaffinity(0))

    def one(_: int) -> None:
        Sandbox.create(timeout=120).kill()

    with ThreadPoolExecutor(4) as clients:
        begun = time.perf_counter()
        list(clients.map(one, range(count)))
        took = time.perf_counter() - begun
    rate = count / took / cores
    report.add(
        "Sustained",
        Row(f"created and ended a second and core, over {count}", rate, "/s", 50, at_most=False),
    )


def measure_density(report: Report, count: int) -> None:
    """`count` idle sandboxes."""
    alone = _create_p50()
    before = _available()
    with ThreadPoolExecutor(4) as clients:
        sandboxes = list(clients.map(lambda _: Sandbox.create(timeout=3600), range(count)))
    time.sleep(10)
    each = (before - _available()) / count / 1024
    own = median([_private(pid) for pid in _envds()]) / 1024
    crowded = _create_p50()
    report.add(
        "Density",
        Row(f"{count} idle sandboxes: memory each, all included", each, "MiB", 6),
        Row("of it: private memory of envd, median", own, "MiB"),
    )
    report.add(
        "Create among others",
        Row(f"create p50 with {count} alive / with none", crowded / alone, "x", 1.3),
    )
    policies.measure(report, sandboxes)
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda sandbox: sandbox.kill(), sandboxes))


def _create_p50() -> float:
    times = []
    for _ in range(40):
        begun = time.perf_counter()
        sandbox = Sandbox.create(timeout=60)
        times.append((time.perf_counter() - begun) * 1e3)
        sandbox.kill()
        time.sleep(0.1)
    return median(times)


def _available() -> int:
    """KiB of the machine that could be used."""
    found = re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())
    assert found is not None
    return int(found[1])


def _envds() -> list[int]:
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/comm")
        if _read(path).strip() == "envd"
    ]


def _private(pid: int) -> float:
    """KiB that nobody else has."""
    rollup = _read(Path(f"/proc/{pid}/smaps_rollup"))
    return float(sum(int(size) for size in re.findall(r"Private_\w+:\s+(\d+)", rollup)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
