"""Many sandboxes: how fast they come, what each takes, and what they cost the next one."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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

    _settle()
    made: list[AsyncSandbox] = []
    times = asyncio.run(burst())
    aim = 1.0 if count == 100 else None
    report.add(
        "Burst",
        Row(f"{count} creates at once, p95 to first output", percentile(times, 0.95), "s", aim),
    )


def measure_sustained(report: Report, count: int) -> None:
    """By four clients: `count` that stay, all ended afterwards; and as many that are ended one by
    one as they come.
    """
    made: list[Sandbox] = []
    create = _rate(lambda: made.append(Sandbox.create(timeout=600)), count)
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda sandbox: sandbox.kill(), made))
    cycle = _rate(lambda: Sandbox.create(timeout=120).kill(), count)
    report.add(
        "Sustained",
        Row(f"created a second and core, over {count}", create.rate, "/s", 50, at_most=False),
        Row("the same, and each ended at once", cycle.rate, "/s"),
    )
    report.add(
        "Processor time of sustained creates",
        Row("for each create, all included", create.all_ms, "ms"),
        Row("of it: the client's", create.client_ms, "ms"),
        Row("for each create and end, all included", cycle.all_ms, "ms"),
        Row("of it: the client's", cycle.client_ms, "ms"),
    )


@dataclass(frozen=True, slots=True)
class _Pace:
    rate: float
    """A second and core."""
    all_ms: float
    """Processor time of the whole machine for each, milliseconds."""
    client_ms: float


def _rate(work: Callable[[], object], count: int) -> _Pace:
    _settle()
    cores = len(os.sched_getaffinity(0))
    begun, busy, own = time.perf_counter(), _busy(), time.process_time()
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: work(), range(count)))
    took = time.perf_counter() - begun
    return _Pace(
        count / took / cores,
        (_busy() - busy) / count * 1e3,
        (time.process_time() - own) / count * 1e3,
    )


def _busy() -> float:
    """Seconds that the machine's processors have worked."""
    first = Path("/proc/stat").read_text().partition("\n")[0]
    user, nice, system, _, _, interrupts, soft = map(int, first.split()[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def _settle() -> None:
    """Wait until the pool is full, and what was ended is gone: no sandbox comes or goes."""
    until, last, since = time.monotonic() + 60, set(_envds()), time.monotonic()
    while time.monotonic() < until and time.monotonic() - since < 1:
        time.sleep(0.1)
        if (now := set(_envds())) != last:
            last, since = now, time.monotonic()


def measure_density(report: Report, count: int) -> None:
    """`count` idle sandboxes."""
    _settle()
    alone = _create_p50()
    _settle()
    before = _available()
    with ThreadPoolExecutor(4) as clients:
        sandboxes = list(clients.map(lambda _: Sandbox.create(timeout=3600), range(count)))
    time.sleep(10)
    _settle()
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
