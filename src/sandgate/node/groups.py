"""What the control groups around this process leave: a container's limits, or those of a unit.

Sandboxes have groups of their own. Where the node runs in a container, theirs are below the root
that the container sees, and so are this process's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_MEMORY = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of version 2 and 1: the limit, what is used, and what of that can be given up at once."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the tightest group leaves. None: no group limits it, or it is not to be seen."""

    memory: int | None = None
    """Bytes."""
    tasks: int | None = None


class Groups:
    """The groups of this process and those around them, as found when this is made."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._directories = tuple(_enclosing(_text(proc / "self" / "mountinfo"), _own(proc)))

    def room(self) -> Room:
        """What they leave now."""
        memory = [found for each in self._directories if (found := _memory(each)) is not None]
        tasks = [found for each in self._directories if (found := _tasks(each)) is not None]
        return Room(min(memory, default=None), min(tasks, default=None))


def _own(proc: Path) -> dict[str, PurePosixPath]:
    """By controller (none: version 2), the group of this process."""
    found: dict[str, PurePosixPath] = {}
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        found |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    return found


def _enclosing(mounts: str, own: dict[str, PurePosixPath]) -> Iterator[Path]:
    """The directories of the groups from `own` up to what is mounted."""
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        root, place = fields.split()[3:5]
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            group = own.get("")
        elif kind == "cgroup":
            names = {"memory", "pids"} & set(options.split(","))
            group = own.get(names.pop()) if names else None
        else:
            continue
        if group is None or not group.is_relative_to(root):
            continue
        inner = group.relative_to(root)
        for directory in (inner, *inner.parents):
            yield Path(place) / directory


def _memory(group: Path) -> int | None:
    for limit_file, used_file, spare_name in _MEMORY:
        limit, used = _number(group / limit_file), _number(group / used_file)
        if limit is not None and used is not None:
            spare = re.search(rf"^{spare_name} (\d+)$", _text(group / "memory.stat"), re.M)
            return max(0, limit - used + (int(spare[1]) if spare else 0))
    return None


def _tasks(group: Path) -> int | None:
    limit, used = _number(group / "pids.max"), _number(group / "pids.current")
    return None if limit is None or used is None else max(0, limit - used)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
