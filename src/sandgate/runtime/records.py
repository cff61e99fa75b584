"""What the launcher writes down of running cells, for one that comes after it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandgate.policy import EgressPolicy
from sandgate.runtime import linux
from sandgate.runtime.cells import Cell, State, start_time
from sandgate.runtime.interpreters import Door

MakeDoor = Callable[[Cell, int, int, tuple[Path, ...]], Door]
"""Of a cell: its listening socket, that one's number inside, the template's layers."""

_DRAFT = ".new"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)


class Records:
    """A file for each running cell, named by its slot."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._boot = _BOOT_ID.read_text().strip()

    def setup(self) -> None:
        """Make the directory; remove what was not finished."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for draft in self._directory.glob(f"*{_DRAFT}"):
            draft.unlink()

    def write(self, cell: Cell) -> None:
        """Write down a running cell as it is now."""
        if cell.started is None:
            cell.started = start_time(cell.pid)
        record: dict[str, Any] = {
            "boot": self._boot,
            "pid": cell.pid,
            "started": cell.started,
            "sandbox_id": cell.sandbox_id,
            "policy": cell.policy.to_json(),
            "paused": cell.paused,
        }
        if (door := cell.door) is not None:
            record["door"] = {
                "number": door.number,
                "layers": [str(layer) for layer in door.layers],
                "pid": door.pid,
                "started": door.pid and start_time(door.pid),
            }
        _replace_text(self._path(cell.slot), json.dumps(record))

    def remove(self, slot: int) -> None:
        """Forget the cell in `slot`, if there is one."""
        self._path(slot).unlink(missing_ok=True)

    def adopt(self, make_door: MakeDoor) -> Iterator[Cell]:
        """The cells that were written down and still run; records of others are removed."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                cell = self._adopt(path, make_door)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                # A power cut may leave a file without what was written to it.
                _log.warning("the record %s is damaged: %s", path, error)
                cell = None
            if cell is not None:
                yield cell
            else:
                path.unlink(missing_ok=True)

    def _adopt(self, path: Path, make_door: MakeDoor) -> Cell | None:
        record = json.loads(path.read_text())
        if record.get("boot", self._boot) != self._boot:
            return None  # its pid is somebody else's now, or nobody's
        try:
            pidfd = os.pidfd_open(record["pid"])
        except ProcessLookupError:
            return None
        if start_time(record["pid"]) != record["started"]:
            os.close(pidfd)
            return None
        cell = Cell(
            int(path.stem),
            record["pid"],
            pidfd,
            None,
            State.RUNNING,
            sandbox_id=record["sandbox_id"],
            policy=EgressPolicy.from_json(record["policy"]),
            paused=record.get("paused", False),
            started=record["started"],
        )
        if (told := record.get("door")) is not None:
            _adopt_door(cell, told, make_door)
        return cell

    def _path(self, slot: int) -> Path:
        return self._directory / f"{slot}.json"


def _adopt_door(cell: Cell, told: dict[str, Any], make_door: MakeDoor) -> None:
    try:
        listener = linux.take_descriptor(cell.pidfd, told["number"])
    except OSError as error:
        _log.warning("slot %d will run no code any more: %s", cell.slot, error)
        return
    layers = tuple(Path(layer) for layer in told["layers"])
    cell.door = make_door(cell, listener, told["number"], layers)
    if told["pid"] is not None and start_time(told["pid"]) == told["started"]:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            cell.door.pidfd = os.pidfd_open(told["pid"])
            cell.door.pid = told["pid"]


def _replace_text(path: Path, text: str) -> None:
    """Give a file other content: whoever reads it finds all of the old or all of the new.

    This outlives the process, not the machine, as do those that the records are about. Renaming
    over a file would make some file systems (ext4) write to the disk at once: milliseconds.
    """
    draft = path.with_suffix(_DRAFT)
    draft.write_text(text)
    try:
        linux.exchange(draft, path)
    except OSError:  # there is none yet, or this file system cannot
        draft.replace(path)
    else:
        draft.unlink()
