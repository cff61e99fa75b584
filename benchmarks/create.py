"""Create -> first command's output, through the official SDK, beside the tools at hand.

    sudo .venv/bin/python benchmarks/create.py [--rounds 50]

Runs against the local node (started if none runs). Every round measures each contender once, in
turn, so that the machine's noise meets all of them alike. `docker run` and `crun run` are measured
where installed; crun runs the same root file system.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sandgate import Sandbox
from sandgate.settings import load_settings
from sandgate.templates import load

UNIFIED = Path("/sys/fs/cgroup/unified")
HYBRID = (
    ["unshare", "--mount", "sh", "-c", f'umount {UNIFIED}; exec "$@"', "sh"]
    if UNIFIED.is_dir()
    else []
)
"""crun refuses hybrid control groups; hiding one half from it costs it about 2 ms."""

Contender = Callable[[], dict[str, float]]
"""Runs one round and returns milliseconds by measure."""


def sandgate_round() -> dict[str, float]:
    """One sandbox through the SDK: create, first command, second command, kill."""
    start = time.perf_counter()
    sandbox = Sandbox.create(timeout=60)
    created = time.perf_counter()
    try:
        assert sandbox.commands.run("echo hello").stdout == "hello\n"
        first = time.perf_counter()
        assert sandbox.commands.run("echo hello").stdout == "hello\n"
        second = time.perf_counter()
    finally:
        sandbox.kill()
    killed = time.perf_counter()
    return {
        "sandgate: create -> first output": (first - start) * 1e3,
        "sandgate:   create": (created - start) * 1e3,
        "sandgate:   first command (new TLS connection)": (first - created) * 1e3,
        "sandgate:   second command": (second - first) * 1e3,
        "sandgate:   kill": (killed - second) * 1e3,
    }


def command_round(label: str, command: list[str]) -> Contender:
    """A contender that is one command printing hello."""

    def run() -> dict[str, float]:
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == "hello\n", done
        return {label: (time.perf_counter() - start) * 1e3}

    return run


def crun_round(rootfs: Path, directory: Path) -> Contender:
    """`crun run` over the same root file system, read-only, without limits."""
    subprocess.run([*HYBRID, "crun", "spec"], cwd=directory, check=True, capture_output=True)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["process"]["args"] = ["echo", "hello"]
    config["process"]["terminal"] = False
    config["process"].pop("rlimits", None)
    config["root"] = {"path": str(rootfs), "readonly": True}
    path.write_text(json.dumps(config))
    crun = ["crun", "--cgroup-manager=disabled", "run", "--bundle", str(directory), "bench"]
    return command_round("crun run", [*HYBRID, *crun])


def contenders(scratch: Path) -> list[Contender]:
    """Sandgate, and whatever else is installed and works here."""
    rootfs = load(load_settings().data_dir)["base"].layers[-1]
    makers: dict[str, Callable[[], Contender]] = {
        "crun": lambda: crun_round(rootfs, scratch),
        "docker": lambda: command_round(
            "docker run", ["docker", "run", "--rm", "busybox", "echo", "hello"]
        ),
    }
    usable: list[Contender] = [sandgate_round]
    for name, make in makers.items():
        if shutil.which(name) is None:
            print(f"left out: {name} is not installed")
            continue
        try:
            contender = make()
            contender()
        except (OSError, subprocess.CalledProcessError) as error:
            output = getattr(error, "stderr", None) or b""
            why = output.decode() if isinstance(output, bytes) else output
            print(f"left out: {name}: {why.strip() or error}")
        else:
            usable.append(contender)
    return usable


def main() -> None:
    """Measure and print p50, p99 and the ratio to Sandgate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        usable = contenders(Path(scratch))
        for _ in range(rounds):
            for contender in usable:
                for label, value in contender().items():
                    samples.setdefault(label, []).append(value)
    base = statistics.median(samples["sandgate: create -> first output"])
    print(f"{'milliseconds, ' + str(rounds) + ' rounds':48} {'p50':>8} {'p99':>8} {'ratio':>7}")
    for label, values in samples.items():
        p99 = sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]
        median = statistics.median(values)
        print(f"{label:48} {median:8.1f} {p99:8.1f} {median / base:7.2f}")


if __name__ == "__main__":
    main()
