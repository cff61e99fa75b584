"""Control groups: the machine's version for real; version 2's files as written."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandgate.runtime import linux
from sandgate.runtime.cgroups import (
    CgroupError,
    Cgroups,
    CgroupsV1,
    CgroupsV2,
    Limits,
    find_cgroups,
)

LIMITS = Limits(cpu_count=2, memory_mb=64, max_pids=20)


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Cgroups]:
    groups = find_cgroups(f"test{os.getpid()}", tmp_path)
    groups.setup()
    yield groups
    for name in groups.names():
        groups.remove(name)
    groups.teardown()


@pytest.fixture
def version_2(tmp_path: Path) -> Iterator[Cgroups]:
    """Version 2 for real. Its controllers may all be with version 1: freezing takes none."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    mounts = [Path(line.split()[4]) for line in lines if " - cgroup2 " in line]
    with contextlib.ExitStack() as stack:
        if not mounts:
            linux.mount("none", str(tmp_path), "cgroup2", 0, "")
            stack.callback(linux.unmount, str(tmp_path), linux.MNT_DETACH)
            mounts = [tmp_path]
        node = mounts[0] / "sandgate" / f"test{os.getpid()}"
        node.mkdir(parents=True)
        groups = CgroupsV2(mounts[0], node.name)
        stack.callback(groups.teardown)
        yield groups
        for name in groups.names():
            groups.remove(name)


@pytest.fixture(params=["groups", "version_2"])
def freezable(request: pytest.FixtureRequest) -> Cgroups:
    """What this machine uses, and version 2."""
    found: Cgroups = request.getfixturevalue(request.param)
    return found


def run_in_group(groups: Cgroups, name: str, work: str) -> int:
    """Run Python code in a child that joined the group; its exit status (negative: signal)."""
    child = os.fork()
    if child == 0:
        try:
            for path in groups.join_paths(name):
                Path(path).write_text("0")
            exec(work, {"os": os, "signal": signal})
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_group_bounds_memory(groups: Cgroups) -> None:
    groups.create("a")
    groups.limit("a", LIMITS)
    assert run_in_group(groups, "a", "bytearray(16 << 20)") == 0
    assert run_in_group(groups, "a", "bytearray(b'x') * (256 << 20)") == -signal.SIGKILL


def test_a_group_bounds_processes(groups: Cgroups) -> None:
    groups.create("a")
    groups.limit("a", LIMITS)
    # Children pause; whatever happens, the whole process group is killed at the end.
    forks = """
os.setpgid(0, 0)
try:
    for _ in range({}):
        if os.fork() == 0:
            signal.pause()
except BlockingIOError:
    os.write(out, b"refused")
finally:
    os.killpg(0, signal.SIGKILL)
"""
    for count, expected in ((10, b""), (30, b"refused")):
        read, out = os.pipe()
        try:
            work = f"out = {out}{forks.format(count)}"
            assert run_in_group(groups, "a", work) == -signal.SIGKILL
            os.close(out)
            assert os.read(read, 100) == expected
        finally:
            os.close(read)


def test_removing_a_group_leaves_no_directory(groups: Cgroups) -> None:
    groups.create("a")
    directories = groups.directories("a")
    assert all(directory.is_dir() for directory in directories)
    groups.remove("a")
    assert not any(directory.exists() for directory in directories)
    assert groups.names() == set()


def test_sandboxes_weigh_as_two_processes_on_each_processor(groups: Cgroups) -> None:
    groups.create("a")
    files = [
        (directory.parents[1] / name, usual)
        for directory in groups.directories("a")
        for name, usual in (("cpu.shares", 1024), ("cpu.weight", 100))
    ]
    (found,) = {int(file.read_text()) / usual for file, usual in files if file.exists()}
    assert found == 2 * (os.cpu_count() or 1)


def test_version_2_limits_are_written_in_its_terms(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    for group in (tmp_path, tmp_path / "sandgate", tmp_path / "sandgate" / "node"):
        group.mkdir(exist_ok=True)
        (group / "cgroup.subtree_control").touch()
    (tmp_path / "sandgate" / "cpu.weight").touch()
    groups = CgroupsV2(tmp_path, "node")
    groups.setup()
    weight = 200 * (os.cpu_count() or 1)
    assert (tmp_path / "sandgate/cpu.weight").read_text() == str(weight)
    assert (tmp_path / "sandgate/node/cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    groups.create("a")
    group = tmp_path / "sandgate/node/a"
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max"):
        (group / name).touch()
    groups.limit("a", LIMITS)
    assert (group / "memory.max").read_text() == str(64 << 20)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (group / "pids.max").read_text() == "20"
    assert (group / "cpu.max").read_text() == "20000 10000"
    assert groups.join_paths("a") == [str(group / "cgroup.procs")]


def test_missing_controllers_are_named(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset io")
    with pytest.raises(CgroupError, match="cpu, memory, pids"):
        CgroupsV2(tmp_path, "node").setup()
    with pytest.raises(CgroupError, match="cpu, cpuacct, freezer, pids"):
        CgroupsV1({"memory": tmp_path}, "node")


def test_a_frozen_group_stands_still_until_thawed(freezable: Cgroups) -> None:
    freezable.create("a")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        for path in freezable.join_paths("a"):
            Path(path).write_text("0")
        while True:
            os.write(write, b".")
            time.sleep(0.005)
    try:
        assert os.read(read, 1)
        assert not freezable.is_frozen("a")
        freezable.freeze("a")
        freezable.freeze("a")
        deadline = time.monotonic() + 5
        while not freezable.is_frozen("a"):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.set_blocking(read, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(read, 4096):
                pass
        time.sleep(0.1)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        freezable.thaw("a")
        os.set_blocking(read, True)
        assert os.read(read, 1)
    finally:
        os.kill(child, signal.SIGKILL)
        freezable.thaw("a")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_who_is_killed_while_frozen_is_gone_once_thawed(freezable: Cgroups) -> None:
    freezable.create("a")
    child = os.fork()
    if child == 0:
        for path in freezable.join_paths("a"):
            Path(path).write_text("0")
        while True:
            signal.pause()
    try:
        procs = Path(freezable.join_paths("a")[0])
        deadline = time.monotonic() + 5
        while str(child) not in procs.read_text().split():
            assert time.monotonic() < deadline
        freezable.freeze("a")
        while not freezable.is_frozen("a"):
            assert time.monotonic() < deadline
    finally:
        os.kill(child, signal.SIGKILL)
        freezable.thaw("a")
        os.waitpid(child, 0)
    freezable.remove("a")
    assert freezable.names() == set()
