"""Cells: sandboxes that are not yet anybody's, running ones, and how each is found again."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from sandgate.policy import EgressPolicy
from sandgate.runtime.cgroups import Limits
from sandgate.runtime.interpreters import Door


class State(Enum):
    """Where a cell is in its life."""

    PREPARING = "preparing"
    READY = "ready"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"
    """Nobody's, and on its way out."""


@dataclass(frozen=True, slots=True)
class CellKind:
    """Cells of one kind are interchangeable until they are started."""

    template: str
    disk_mb: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class Base:
    """What cells of a template stand on."""

    layers: tuple[Path, ...]
    """Topmost first."""
    interpreter: bool
    """Whether they can run code at the interpreter's port."""


@dataclass(slots=True, eq=False)
class Cell:
    """One cell. `sandbox_id` and `policy` are known once it is somebody's."""

    slot: int
    pid: int
    pidfd: int
    kind: CellKind | None
    state: State
    channel: socket.socket | None = None
    disk: int | None = None
    """The file system's root; kept to be able to abandon it."""
    sandbox_id: str | None = None
    policy: EgressPolicy = field(default_factory=EgressPolicy)
    paused: bool = False
    """Frozen, or to be frozen."""
    parked: bool = False
    """Its disk outlives it."""
    base: Base | None = None
    """None: adopted."""
    door: Door | None = None
    started: int | None = None
    """:func:`start_time` of its first process, once it was asked for."""

    def close(self) -> None:
        """Close the launcher's descriptors of this cell."""
        os.close(self.pidfd)
        if self.channel is not None:
            self.channel.close()
        if self.disk is not None:
            os.close(self.disk)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; tells it from its pid's next user."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])
