"""What sandboxes use: read from control groups and disks, for real."""

from __future__ import annotations

import asyncio
import math
import signal
from pathlib import Path

import pytest

from runtime.conftest import LauncherProcess, Start
from sandgate.runtime.cgroups import CgroupsV1, CgroupsV2
from sandgate.runtime.client import LauncherClient
from sandgate.runtime.meters import V1, V2, GroupUsage
from sandgate.runtime.protocol import Usage

MIB = 1 << 20


def test_version_2_files_are_read_without_shared_memory_as_cache(tmp_path: Path) -> None:
    group = tmp_path / "sandgate/node/a"
    group.mkdir(parents=True)
    (group / "cpu.stat").write_text("usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n")
    (group / "memory.current").write_text("1000\n")
    (group / "memory.stat").write_text("anon 500\nfile 400\nkernel 90\nshmem 100\n")
    assert CgroupsV2(tmp_path, "node").usage("a") == GroupUsage(1_500_000, 700, 300)


def test_version_1_hierarchies_that_are_mounted_together_are_one(tmp_path: Path) -> None:
    mounts = {name: tmp_path / name for name in ("memory", "pids", "freezer")}
    both = tmp_path / "cpu,cpuacct"
    groups = CgroupsV1({**mounts, "cpu": both, "cpuacct": both}, "node")
    (both / "sandgate").mkdir(parents=True)
    (both / "sandgate/cpu.shares").touch()
    groups.setup()
    groups.create("a")
    assert len(groups.directories("a")) == len(groups.join_paths("a")) == 4
    (both / "sandgate/node/a/cpuacct.usage").write_text("77\n")
    memory = tmp_path / "memory/sandgate/node/a"
    (memory / "memory.usage_in_bytes").write_text("1000\n")
    (memory / "memory.stat").write_text("cache 1\ntotal_cache 400\ntotal_shmem 100\n")
    assert groups.usage("a") == GroupUsage(77, 700, 300)


@pytest.mark.parametrize(("quota", "period"), [(20_000, 10_000), (200_000, 100_000)])
def test_a_quota_is_read_with_its_period(quota: int, period: int) -> None:
    first = {"cpu.cfs_quota_us": f"{quota}\n", "cpu.cfs_period_us": f"{period}\n"}
    first["memory.limit_in_bytes"] = "512\n"
    assert V1.limits(first.__getitem__) == (2.0, 512)
    second = {"cpu.max": f"{quota} {period}\n", "memory.max": "512\n"}
    assert V2.limits(second.__getitem__) == (2.0, 512)


def test_what_is_not_limited_is_infinite() -> None:
    texts = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}
    assert V1.limits({**texts, "memory.limit_in_bytes": "512\n"}.__getitem__) == (math.inf, 512)
    texts = {"cpu.max": "max 100000\n", "memory.max": "max\n"}
    assert V2.limits(texts.__getitem__) == (math.inf, math.inf)


async def usage_of(client: LauncherClient, *names: str) -> dict[str, Usage]:
    return await client.usage(["inone", *names])


async def test_usage_follows_what_a_sandbox_does(start: Start, client: LauncherClient) -> None:
    sandbox = await start("iusage")
    before = (await usage_of(client, "iusage"))["iusage"]
    assert 256 * MIB * 0.9 < before.disk_size <= 256 * MIB
    assert 0 < before.memory < 256 * MIB
    work = (
        "python3 -c 'import time\nwhile time.process_time() < 0.4: pass'; "
        "dd if=/dev/zero of=/home/user/big bs=1M count=40 conv=fsync 2>/dev/null; "
        "cat /home/user/big >/dev/null"
    )
    await asyncio.to_thread(sandbox.run, work)
    after = (await usage_of(client, "iusage"))["iusage"]
    assert after.cpu_ns - before.cpu_ns > 300_000_000
    assert after.disk - before.disk >= 40 * MIB
    assert after.cache - before.cache > 20 * MIB
    assert after.memory < 128 * MIB
    await client.kill("iusage")
    assert await usage_of(client, "iusage") == {}


async def test_usage_of_a_sandbox_that_was_adopted(
    start: Start, client: LauncherClient, launcher: LauncherProcess
) -> None:
    sandbox = await start("iadopted")
    await asyncio.to_thread(sandbox.run, "head -c 20M /dev/zero >/home/user/big; sync")
    before = (await usage_of(client, "iadopted"))["iadopted"]
    launcher.stop(signal.SIGKILL)
    launcher.start()
    after = (await usage_of(client, "iadopted"))["iadopted"]
    assert abs(after.disk - before.disk) < MIB and after.disk_size == before.disk_size
    assert after.disk > 20 * MIB
