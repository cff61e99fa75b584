"""From `Sandbox.create` to the first output, beside the tools at hand, which run the same files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from e2b import Sandbox

from benchmarks.place import Place
from benchmarks.report import Report, Row, median, percentile
from sandgate.templates import load

UNIFIED = Path("/sys/fs/cgroup/unified")
HYBRID = (
    ["unshare", "--mount", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh"]
    if UNIFIED.is_dir()
    else []
)
"""crun refuses hybrid control groups; hiding one half from it costs it about 2 ms."""

_PAUSE = 0.1
"""Seconds between rounds: a pool that is warm, which is what is measured."""

Contender = Callable[[], float]
"""Runs one command in something new and returns milliseconds."""


def measure(place: Place, report: Report, rounds: int) -> None:
    """Every round measures each contender once, so that the machine's noise meets all alike."""
    _round()  # loads the SDK and warms the node: reported apart
    begun = time.perf_counter()
    subprocess.run(["python3", "-c", "import e2b"], check=False, capture_output=True)
    imports = (time.perf_counter() - begun) * 1e3
    others = _others(place, report)
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in _round().items():
            samples.setdefault(name, []).append(value)
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
    report.add("Of the client", Row("import of the SDK, once", imports, "ms"))
    for name in others:
        ratio = median(total) / median(samples[name])
        report.add("Ratios", Row(f"create -> first output / {name}", ratio, "x"))


def measure_commands(report: Report, rounds: int) -> None:
    """Commands in a live sandbox."""
    with Sandbox.create(timeout=300) as sandbox:
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            sandbox.commands.run("echo hello")
            times.append((time.perf_counter() - begun) * 1e3)
    report.add(
        "Commands",
        Row("command in a live sandbox, p50", median(times), "ms", 5),
        Row("command in a live sandbox, p99", percentile(times, 0.99), "ms"),
    )


def _round() -> dict[str, float]:
    begun = time.perf_counter()
    sandbox = Sandbox.create(timeout=60)
    created = time.perf_counter()
    sandbox.commands.run("echo hello")
    first = time.perf_counter()
    sandbox.kill()
    killed = time.perf_counter()
    return {
        "total": (first - begun) * 1e3,
        "create": (created - begun) * 1e3,
        "first command, with its TLS connection": (first - created) * 1e3,
        "kill": (killed - first) * 1e3,
    }


def _server_side(place: Place) -> float:
    """What control wrote down, without the first."""
    times = [
        float(found)
        for found in re.findall(r"sandbox created .* ms=([\d.]+)", place.node.log.read_text())
    ]
    return median(times[1:])


def _others(place: Place, report: Report) -> dict[str, Contender]:
    rootfs = load(place.node.data_dir)["base"].layers[-1]
    makers: dict[str, Callable[[], Contender]] = {
        "crun": lambda: _crun(rootfs, place.scratch),
        "podman": lambda: _command(
            "podman", "run", "--rm", "--network=none", "--rootfs", f"{rootfs}:O", "echo", "hello"
        ),
        "docker": lambda: _command("docker", "run", "--rm", "busybox", "echo", "hello"),
    }
    usable: dict[str, Contender] = {}
    for name, make in makers.items():
        if shutil.which(name) is None:
            report.leave_out(f"{name} is not installed")
            continue
        try:
            contender = make()
            contender()
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", None) or b""
            report.leave_out(f"{name}: {output.decode().strip()[:200] or error}")
        else:
            usable[f"{name} run"] = contender
    return usable


def _command(*command: str) -> Contender:
    def run() -> float:
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        assert done.stdout == b"hello\n", done
        return (time.perf_counter() - begun) * 1e3

    return run


def _crun(rootfs: Path, directory: Path) -> Contender:
    """Over the same root file system, read-only, without network, limits and seccomp."""
    subprocess.run([*HYBRID, "crun", "spec"], cwd=directory, check=True, capture_output=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"]["args"] = ["echo", "hello"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))
    crun = ["crun", "--cgroup-manager=disabled", "run", "--bundle", str(directory), "bench"]
    return _command(*HYBRID, *crun)
