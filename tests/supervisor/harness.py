"""A supervisor of small real children, run as a process of its own.

The directory given as first argument holds `children.json`: a list of `{name, code, config, waits,
outlived, stop_seconds}`. A child is ready once the file `<name>.ready` is there.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sandgate.supervisor.component import Child, Component, end_stale
from sandgate.supervisor.supervisor import Phase, StartError, Supervisor


def probe(path: Path) -> Callable[[], str | None]:
    return lambda: None if path.exists() else f"{path.name} is missing"


def main(directory: Path) -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    specs = json.loads((directory / "children.json").read_text())
    components = [
        Component(
            name=spec["name"],
            command=(sys.executable, "-I", "-u", "-c", spec["code"], str(directory), spec["name"]),
            probe=probe(directory / f"{spec['name']}.ready"),
            config=spec.get("config", "").encode(),
            stop_seconds=spec.get("stop_seconds", 2.0),
            waits=spec.get("waits", False),
            piped=spec.get("piped", False),
            outlived=spec.get("outlived", False),
        )
        for spec in specs
    ]
    pid_dir = directory / "pids"
    pid_dir.mkdir(exist_ok=True)

    def record(phase: Phase, children: Sequence[Child]) -> None:
        state = {
            "phase": phase,
            "children": {
                child.component.name: [child.process.pid if child.process else None, child.restarts]
                for child in children
            },
        }
        temporary = directory / "state.new"
        temporary.write_text(json.dumps(state))
        temporary.replace(directory / "state.json")

    stale = end_stale(pid_dir, {spec["name"] for spec in specs if spec.get("outlived")})
    print(f"stale: {stale}", file=sys.stderr, flush=True)
    try:
        Supervisor(
            components, pid_dir, took_over=bool(stale), start_seconds=5.0, on_change=record
        ).run()
    except StartError as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
