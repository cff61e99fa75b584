"""From `Sandbox.create` to the first output, beside the tools at hand."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Mapping

from e2b import Sandbox

from benchmarks import instant
from benchmarks.containers import Contender
from benchmarks.place import Place
from benchmarks.report import Report, Row, median, percentile

_PAUSE = 0.1
"""Seconds between rounds: a pool that is warm, which is what is measured."""


def measure(place: Place, report: Report, rounds: int, others: Mapping[str, Contender]) -> None:
    """Every round measures each contender once, so that the machine's noise meets all alike."""
    _round()  # loads the SDK and warms the node: reported apart
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import e2b"], check=True)
    imports = (time.perf_counter() - begun) * 1e3
    domain = instant.start(place)
    _round(domain)
    samples: dict[str, list[float]] = {}
    client: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in _round().items():
            samples.setdefault(name, []).append(value)
        for name, value in _round(domain).items():
            client.setdefault(name, []).append(value)
        for name, contender in others.items():
            samples.setdefault(name, []).append(contender())
        time.sleep(_PAUSE)
    total = samples.pop("total")
    rows = [
        Row("create -> first output, p50", median(total), "ms", 15),
        Row("create -> first output, p99", percentile(total, 0.99), "ms", 40),
        Row("server side of create, p50", _server_side(place), "ms", 6),
    ]
    rows += [Row(f"{name}, p50", median(values), "ms") for name, values in samples.items()]
    report.add("Create", *rows)
    report.add(
        "Of the client, with a server that answers at once",
        *(Row(f"{name}, p50", median(values), "ms") for name, values in client.items()),
        Row("import of the SDK, once", imports, "ms"),
    )
    for name in others:
        ratio = median(total) / median(samples[name])
        report.add("Ratios", Row(f"create -> first output / {name}", ratio, "x"))


def measure_commands(report: Report, rounds: int, others: Mapping[str, Contender]) -> None:
    """Commands in a live sandbox, and in what else is live."""
    times: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in others}
    with Sandbox.create(timeout=300) as sandbox:
        for _ in range(rounds):
            begun = time.perf_counter()
            sandbox.commands.run("echo hello")
            times.append((time.perf_counter() - begun) * 1e3)
            for name, contender in others.items():
                samples[name].append(contender())
    report.add(
        "Commands",
        Row("command in a live sandbox, p50", median(times), "ms", 5),
        Row("command in a live sandbox, p99", percentile(times, 0.99), "ms"),
        *(Row(f"{name}, p50", median(values), "ms") for name, values in samples.items()),
    )


def _round(domain: str | None = None) -> dict[str, float]:
    """`domain`: of the server to use instead of the node."""
    begun = time.perf_counter()
    sandbox = Sandbox.create(timeout=60, domain=domain)
    created = time.perf_counter()
    sandbox.commands.run("echo hello")
    first = time.perf_counter()
    sandbox.commands.run("echo hello")
    second = time.perf_counter()
    sandbox.kill()
    killed = time.perf_counter()
    return {
        "total": (first - begun) * 1e3,
        "create": (created - begun) * 1e3,
        "first command, with its TLS connection": (first - created) * 1e3,
        "next command": (second - first) * 1e3,
        "kill": (killed - second) * 1e3,
    }


def _server_side(place: Place) -> float:
    """What control wrote down, without the first."""
    times = [
        float(found)
        for found in re.findall(r"sandbox created .* ms=([\d.]+)", place.node.log.read_text())
    ]
    return median(times[1:])
