"""What a machine says it has left: this one, and one that is written down."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandgate.node.gauges import MachineGauge


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB and 50 inodes."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,nr_inodes=50", "none", place], check=True
    )
    yield place
    subprocess.run(["umount", place], check=True)


def test_this_machine_has_something_of_everything(tmp_path: Path) -> None:
    found = MachineGauge(tmp_path).read(0)
    for value in (found.memory_mb, found.disk_mb, found.files, found.tasks):
        assert value is not None and value > 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_disk_that_fills_is_seen_to_fill(tmpfs: Path) -> None:
    gauge = MachineGauge(tmpfs)
    before = gauge.read(0)
    assert before.disk_mb == 8 and before.inodes is not None and before.inodes <= 50
    (tmpfs / "file").write_bytes(b"x" * (6 << 20))
    after = gauge.read(0)
    assert after.disk_mb == 2 and after.inodes == before.inodes - 1


def test_descriptors_count_those_of_the_launcher_too(tmp_path: Path) -> None:
    gauge = MachineGauge(tmp_path)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = gauge.read(0).files
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(10)]
    try:
        after = gauge.read(0).files
        assert before is not None and after is not None and before - after >= 10
        assert before <= limit
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert gauge.read(limit // 6).files == limit % 6
    assert gauge.read(limit).files == 0


def test_what_the_kernel_writes_is_understood(tmp_path: Path) -> None:
    files = {
        "meminfo": "MemTotal:  24000000 kB\nMemAvailable:    2048000 kB\n",
        "sys/fs/file-nr": "1000\t0\t1100\n",
        "loadavg": "0.1 0.2 0.3 4/900 12345\n",
        "sys/kernel/pid_max": "4194304\n",
        "sys/kernel/threads-max": "1000\n",
        "sys/net/netfilter/nf_conntrack_max": "262144\n",
        "sys/net/netfilter/nf_conntrack_count": "262000\n",
        "sys/net/ipv4/neigh/default/gc_thresh3": "1024\n",
        "net/arp": "IP address  HW type  Flags  HW address  Mask  Device\n"
        "198.18.0.16  0x1  0x6  02:53:c6:12:00:10  *  sg0\n"
        "192.0.2.1  0x1  0x2  02:00:00:00:00:01  *  eth0\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    found = MachineGauge(tmp_path, tmp_path).read(0)
    assert (found.memory_mb, found.files, found.tasks) == (2000, 100, 100)
    assert (found.connections, found.neighbours) == (144, 1023)
    nothing = MachineGauge(tmp_path, tmp_path / "none").read(0)
    assert nothing.memory_mb is nothing.tasks is nothing.connections is nothing.neighbours is None


@pytest.mark.parametrize(
    ("mount", "own", "files"),
    [
        (
            "30 25 0:26 / {root} rw shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            "0::/unit/part",
            {
                "unit/memory.max": "2147483648",
                "unit/memory.current": "1610612736",
                "unit/memory.stat": "anon 5\ninactive_file 104857600\n",
                "unit/part/memory.max": "max",
                "unit/part/memory.current": "5",
                "unit/part/pids.max": "700",
                "unit/part/pids.current": "600",
                "pids.max": "90",
                "pids.current": "10",
            },
        ),
        (
            "30 25 0:26 /box {root} rw - cgroup cgroup rw,memory,pids",
            "7:memory,pids:/box/unit\n1:name=systemd:/box",
            {
                "unit/memory.limit_in_bytes": "9223372036854771712",
                "unit/memory.usage_in_bytes": "4096",
                "memory.limit_in_bytes": "2147483648",
                "memory.usage_in_bytes": "1610612736",
                "memory.stat": "inactive_file 1\ntotal_inactive_file 104857600\n",
                "unit/pids.max": "max",
                "unit/pids.current": "5",
                "pids.max": "90",
                "pids.current": "10",
            },
        ),
    ],
)
def test_the_tightest_control_group_around_the_node_counts(
    tmp_path: Path, mount: str, own: str, files: dict[str, str]
) -> None:
    root = tmp_path / "groups"
    written = {
        "self/mountinfo": mount.format(root=root),
        "self/cgroup": own,
        "meminfo": "MemAvailable:    2048000 kB\n",
        "loadavg": "0.1 0.2 0.3 4/900 12345\n",
        "sys/kernel/pid_max": "4194304\n",
    } | {f"groups/{name}": text for name, text in files.items()}
    for name, content in written.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    found = MachineGauge(tmp_path, tmp_path).read(0)
    assert (found.memory_mb, found.tasks) == (612, 80)
