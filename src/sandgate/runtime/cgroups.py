"""Resource limits of sandboxes by control groups, version 1 and version 2.

A node's groups lie in `sandgate/<node id>/` of each hierarchy, a group for each sandbox.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandgate.runtime import linux, meters
from sandgate.runtime.meters import CPU_PERIOD_US, GroupUsage, Meter

_SOCKET_SHARE = 8
"""What part of its memory a sandbox may have once more as buffers of sockets (version 1)."""
_REMOVE_TIMEOUT_S = 2.0
_WEIGHT = 2
"""All sandboxes weigh on each processor as so many ordinary processes, or groups. Else they would
weigh as one on all processors together: where the machine is busy, whoever of them works hard would
take the little that the others need."""
_USUAL_WEIGHT_V1, _MOST_WEIGHT_V1 = 1024, 1 << 18
_USUAL_WEIGHT_V2, _MOST_WEIGHT_V2 = 100, 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandbox may use."""

    cpu_count: int
    memory_mb: int
    max_pids: int


class CgroupError(RuntimeError):
    """The machine's control groups cannot be used; says why."""


class Cgroups(ABC):
    """The groups of one node."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What :func:`cgroups_from_json` makes the same of, in another process."""

    @abstractmethod
    def setup(self) -> None:
        """Make the node's parent groups. Raises CgroupError."""

    @abstractmethod
    def create(self, name: str) -> None:
        """Make the group `name`, without limits."""

    @abstractmethod
    def limit(self, name: str, limits: Limits) -> None:
        """Set the limits of the group `name`."""

    @abstractmethod
    def join_paths(self, name: str) -> list[str]:
        """Files that a process writes "0" to in order to join the group."""

    @abstractmethod
    def directories(self, name: str) -> list[Path]:
        """The directories that make up the group."""

    @abstractmethod
    def usage(self, name: str) -> GroupUsage:
        """What the group `name` uses. Raises OSError."""

    @abstractmethod
    def meter(self, name: str) -> Meter:
        """Open what tells what the group `name` uses and may use. Raises OSError."""

    @abstractmethod
    def names(self) -> set[str]:
        """The groups that exist now."""

    @abstractmethod
    def freeze(self, name: str) -> None:
        """Begin to stop all processes of the group. Harmless to repeat."""

    @abstractmethod
    def is_frozen(self, name: str) -> bool:
        """Whether every process of the group stands still since :meth:`freeze`."""

    @abstractmethod
    def thaw(self, name: str) -> None:
        """Let the group's processes go on. Harmless if they never stopped."""

    def end(self, name: str) -> None:
        """Kill what is in the group, if there is one, and remove it. Raises OSError."""
        for directory in self.directories(name):
            with contextlib.suppress(FileNotFoundError):
                for pid in (directory / "cgroup.procs").read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(FileNotFoundError):
            self.thaw(name)  # in version 1 a signal waits for that
        self.remove(name)

    def remove(self, name: str) -> None:
        """Remove the group, whose processes must be dead or dying. Raises OSError after 2 s."""
        deadline = time.monotonic() + _REMOVE_TIMEOUT_S
        for directory in self.directories(name):
            while True:
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    # A task that has been reaped leaves its group a moment later.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.001)
                    continue
                break

    @abstractmethod
    def stands(self) -> bool:
        """Whether the node's parent groups, or some of them, exist."""

    @abstractmethod
    def teardown(self) -> None:
        """Remove the node's parent groups, but those that still have some of a sandbox."""


class CgroupsV2(Cgroups):
    """The unified hierarchy."""

    def __init__(self, mount: Path, node_id: str) -> None:
        self._mount = mount
        self._id = node_id
        self._node = mount / "sandgate" / node_id

    def to_json(self) -> dict[str, Any]:
        return {"v2": str(self._mount), "node_id": self._id}

    def setup(self) -> None:
        available = (self._mount / "cgroup.controllers").read_text().split()
        missing = {"cpu", "memory", "pids"} - set(available)
        if missing:
            raise CgroupError(f"cgroup v2 controllers not available: {', '.join(sorted(missing))}")
        self._node.mkdir(parents=True, exist_ok=True)
        for group in (self._mount, self._node.parent, self._node):
            _write(group / "cgroup.subtree_control", "+cpu +memory +pids")
        weight = _weight(_USUAL_WEIGHT_V2, _MOST_WEIGHT_V2)
        _write(self._node.parent / "cpu.weight", str(weight))

    def create(self, name: str) -> None:
        (self._node / name).mkdir()

    def limit(self, name: str, limits: Limits) -> None:
        group = self._node / name
        _write(group / "memory.max", str(limits.memory_mb << 20))
        if (swap := group / "memory.swap.max").exists():
            _write(swap, "0")
        _write(group / "memory.oom.group", "0")
        _write(group / "pids.max", str(limits.max_pids))
        _write(group / "cpu.max", f"{limits.cpu_count * CPU_PERIOD_US} {CPU_PERIOD_US}")

    def join_paths(self, name: str) -> list[str]:
        return [str(self._node / name / "cgroup.procs")]

    def freeze(self, name: str) -> None:
        _write(self._node / name / "cgroup.freeze", "1")

    def is_frozen(self, name: str) -> bool:
        return "frozen 1" in (self._node / name / "cgroup.events").read_text().splitlines()

    def thaw(self, name: str) -> None:
        _write(self._node / name / "cgroup.freeze", "0")

    def directories(self, name: str) -> list[Path]:
        return [self._node / name]

    def usage(self, name: str) -> GroupUsage:
        return meters.V2.usage(lambda file: (self._node / name / file).read_text())

    def meter(self, name: str) -> Meter:
        return Meter(meters.V2, {file: self._node / name / file for file in meters.V2.files})

    def names(self) -> set[str]:
        return _children(self._node)

    def stands(self) -> bool:
        return self._node.exists()

    def teardown(self) -> None:
        _remove_if_empty(self._node, self._node.parent)


class CgroupsV1(Cgroups):
    """One hierarchy for each controller, or for several."""

    CONTROLLERS = ("memory", "cpu", "cpuacct", "pids", "freezer")

    def __init__(self, mounts: dict[str, Path], node_id: str) -> None:
        missing = set(self.CONTROLLERS) - set(mounts)
        if missing:
            raise CgroupError(f"cgroup v1 controllers not mounted: {', '.join(sorted(missing))}")
        self._nodes = {name: mounts[name] / "sandgate" / node_id for name in self.CONTROLLERS}
        # Each once: `cpu` and `cpuacct` are one hierarchy on many machines.
        self._parents = list(dict.fromkeys(self._nodes.values()))
        self._mounts = {name: mounts[name] for name in self.CONTROLLERS}
        self._id = node_id

    def to_json(self) -> dict[str, Any]:
        mounts = {name: str(path) for name, path in self._mounts.items()}
        return {"v1": mounts, "node_id": self._id}

    def setup(self) -> None:
        for node in self._parents:
            node.mkdir(parents=True, exist_ok=True)
        weight = _weight(_USUAL_WEIGHT_V1, _MOST_WEIGHT_V1)
        _write(self._nodes["cpu"].parent / "cpu.shares", str(weight))

    def create(self, name: str) -> None:
        for node in self._parents:
            (node / name).mkdir()

    def limit(self, name: str, limits: Limits) -> None:
        memory = self._nodes["memory"] / name
        limit = str(limits.memory_mb << 20)
        _write(memory / "memory.limit_in_bytes", limit)
        if (with_swap := memory / "memory.memsw.limit_in_bytes").exists():
            _write(with_swap, limit)
        # Version 2 counts the buffers of sockets as memory. Here nothing does unless it is limited,
        # and the machine has one amount of them for all.
        if (sockets := memory / "memory.kmem.tcp.limit_in_bytes").exists():
            _write(sockets, str((limits.memory_mb << 20) // _SOCKET_SHARE))
        _write(self._nodes["pids"] / name / "pids.max", str(limits.max_pids))
        cpu = self._nodes["cpu"] / name
        _write(cpu / "cpu.cfs_period_us", str(CPU_PERIOD_US))
        _write(cpu / "cpu.cfs_quota_us", str(limits.cpu_count * CPU_PERIOD_US))

    def join_paths(self, name: str) -> list[str]:
        return [str(node / name / "cgroup.procs") for node in self._parents]

    def freeze(self, name: str) -> None:
        _write(self._nodes["freezer"] / name / "freezer.state", "FROZEN")

    def is_frozen(self, name: str) -> bool:
        state = self._nodes["freezer"] / name / "freezer.state"
        return state.read_text().strip() == "FROZEN"

    def thaw(self, name: str) -> None:
        _write(self._nodes["freezer"] / name / "freezer.state", "THAWED")

    def directories(self, name: str) -> list[Path]:
        return [node / name for node in self._parents]

    def usage(self, name: str) -> GroupUsage:
        return meters.V1.usage(lambda file: self._file(name, file).read_text())

    def meter(self, name: str) -> Meter:
        return Meter(meters.V1, {file: self._file(name, file) for file in meters.V1.files})

    def _file(self, name: str, file: str) -> Path:
        return self._nodes[file.partition(".")[0]] / name / file

    def names(self) -> set[str]:
        return set().union(*(_children(node) for node in self._parents))

    def stands(self) -> bool:
        return any(node.exists() for node in self._parents)

    def teardown(self) -> None:
        for node in self._parents:
            _remove_if_empty(node, node.parent)


@dataclass(frozen=True, slots=True)
class _Mounts:
    """Where control groups are mounted, and how."""

    v2: Path | None
    v2_options: tuple[str, ...]
    v1: dict[str, Path]
    """By controller."""


def find_cgroups(node_id: str, directory: Path) -> Cgroups:
    """The hierarchy this machine offers: version 2 where it has the controllers, else version 1.

    Where this mount namespace shows none (`ip netns exec` mounts a bare /sys), they are mounted
    below `directory`; the caller's mount namespace should be its own then. Raises CgroupError.
    """
    mounts = _read_mounts("/proc/self/mountinfo")
    if mounts.v2 is None and not mounts.v1:
        mounts = _mount_again(directory)
    if mounts.v2 is not None and "memory" in (mounts.v2 / "cgroup.controllers").read_text().split():
        return CgroupsV2(mounts.v2, node_id)
    if mounts.v1:
        return CgroupsV1(mounts.v1, node_id)
    raise CgroupError("the machine has no control groups; mount cgroup2 on /sys/fs/cgroup")


def cgroups_from_json(told: Mapping[str, Any]) -> Cgroups:
    """The inverse of :meth:`Cgroups.to_json`. Looks at nothing and mounts nothing."""
    if "v2" in told:
        return CgroupsV2(Path(told["v2"]), told["node_id"])
    return CgroupsV1({name: Path(path) for name, path in told["v1"].items()}, told["node_id"])


def favor_dynamic_changes(directory: Path) -> bool:
    """Ask the kernel to make joining a group fast (0.2 ms instead of 10-30 ms when idle).

    The option belongs to the cgroup2 file system and acts on version 1 hierarchies too; forks get
    slightly slower. It is set by mounting that file system once more, at `directory` in the
    caller's private mount namespace. Returns whether it is on. Kernel: admin-guide/cgroup-v2.rst.
    """
    mounts = _read_mounts("/proc/1/mountinfo")
    if mounts.v2 is None or "favordynmods" in mounts.v2_options:
        return mounts.v2 is not None
    try:
        _mount_v2(directory, (*mounts.v2_options, "favordynmods"))
    except OSError:
        return False
    linux.unmount(str(directory), linux.MNT_DETACH)
    return True


def _mount_again(directory: Path) -> _Mounts:
    """Mount the hierarchies that the machine has, below `directory`."""
    v2: Path | None = None
    v1: dict[str, Path] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        if controllers.startswith("name="):
            continue
        target = directory / (controllers or "unified")
        target.mkdir(parents=True, exist_ok=True)
        if controllers:
            linux.mount("none", str(target), "cgroup", 0, controllers)
            v1.update(dict.fromkeys(controllers.split(","), target))
        else:
            _mount_v2(target, _read_mounts("/proc/1/mountinfo").v2_options)
            v2 = target
    return _Mounts(v2, (), v1)


def _mount_v2(target: Path, options: tuple[str, ...]) -> None:
    # A mount sets the options of the whole file system, so the present ones must be repeated.
    linux.mount("none", str(target), "cgroup2", 0, ",".join(options))


def _read_mounts(table: str) -> _Mounts:
    v2: Path | None = None
    v2_options: tuple[str, ...] = ()
    v1: dict[str, Path] = {}
    for line in Path(table).read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        target = Path(fields.split()[4])
        kind, _, options = rest.split(" ", 2)
        if kind == "cgroup2":
            v2 = target
            v2_options = tuple(option for option in options.split(",") if option not in _ACCESS)
        elif kind == "cgroup":
            for option in options.split(","):
                v1.setdefault(option, target)
    return _Mounts(v2, v2_options, v1)


_ACCESS = ("rw", "ro")


def _write(path: Path, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _weight(usual: int, most: int) -> int:
    return min(most, _WEIGHT * usual * (os.cpu_count() or 1))


def _children(group: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(group) if entry.is_dir(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def _remove_if_empty(*groups: Path) -> None:
    for group in groups:
        try:
            group.rmdir()
        except OSError:
            return  # in use by another node, or gone
