"""Components that an earlier supervisor left serving, and how each makes room for the next."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from pathlib import Path

from sandgate.supervisor.processes import (
    ProcessId,
    end,
    end_group,
    read_pid_file,
    write_pid_file,
)

_DRAINED = ".drained"


def standing(pid_dir: Path, names: Iterable[str]) -> dict[str, ProcessId]:
    """Those of the components `names` that live, by the pid files of whoever started them."""
    found = {}
    for name in names:
        process = read_pid_file(pid_dir / f"{name}.pid")
        if process is not None and process.alive():
            found[name] = process
    return found


def retire(process: ProcessId, *, outlived: bool, stop_seconds: float) -> None:
    """End a component of an earlier supervisor. `outlived`: alone, and without asking.

    Asked to end, a launcher would end its sandboxes too.
    """
    if outlived:
        end(process, signal.SIGKILL, 5.0)
    else:
        end(process, signal.SIGTERM, stop_seconds)
        end_group(process)


def note_drained(pid_dir: Path, process: ProcessId) -> None:
    """Write down a process that is asked to end once nobody uses it any more."""
    write_pid_file(pid_dir / f"{process.pid}{_DRAINED}", process)


def end_drained(pid_dir: Path) -> None:
    """End those that still are used."""
    for path in pid_dir.glob(f"*{_DRAINED}"):
        process = read_pid_file(path)
        if process is not None and process.alive():
            end(process, signal.SIGKILL, 5.0)
        path.unlink(missing_ok=True)
