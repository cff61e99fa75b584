"""Disks: real images, loop devices and mounts (detached: the machine's table stays clean)."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.conftest import backing_files
from sandgate.runtime.disks import DiskFormat, abandon_disk, mount_disk

SIZE_MB = 64


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[int]:
    image = tmp_path / "image"
    DiskFormat.make(SIZE_MB).write(image)
    mount = mount_disk(image)
    image.unlink()
    root = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=mount)
    os.close(mount)
    yield root
    os.close(root)


def test_an_image_takes_little_space_until_it_is_written(tmp_path: Path) -> None:
    image = tmp_path / "image"
    DiskFormat.make(10_240).write(image)
    status = image.stat()
    assert status.st_size == 10_240 << 20
    assert status.st_blocks * 512 < 1 << 20


def test_a_full_disk_refuses_and_deleting_gives_the_space_back(disk: int) -> None:
    fd = os.open("big", os.O_WRONLY | os.O_CREAT, dir_fd=disk)
    written = 0
    try:
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            while written < 2 * SIZE_MB << 20:
                written += os.write(fd, bytes(1 << 20))
    finally:
        os.close(fd)
    assert 0.8 * SIZE_MB < written >> 20 < SIZE_MB
    os.unlink("big", dir_fd=disk)
    free = os.fstatvfs(disk)
    assert free.f_bavail * free.f_frsize > 0.8 * (SIZE_MB << 20)


def test_inodes_run_out_before_they_are_endless(disk: int) -> None:
    assert os.fstatvfs(disk).f_files == (SIZE_MB << 20) // 8192


def test_the_loop_device_clears_itself_with_the_last_descriptor(tmp_path: Path) -> None:
    image = tmp_path / "image"
    DiskFormat.make(SIZE_MB).write(image)
    mount = mount_disk(image)
    assert str(image) in backing_files()
    os.close(mount)
    deadline = time.monotonic() + 5
    while str(image) in backing_files():
        assert time.monotonic() < deadline, "the loop device is still attached"
        time.sleep(0.01)


def test_an_abandoned_disk_takes_no_more_writes(disk: int) -> None:
    fd = os.open("big", os.O_WRONLY | os.O_CREAT, dir_fd=disk)
    try:
        os.posix_fallocate(fd, 0, 56 << 20)
        abandon_disk(disk)
    finally:
        os.close(fd)
    # Less than what is worth it on this small disk: nothing happened yet.
    os.close(os.open("other", os.O_WRONLY | os.O_CREAT, dir_fd=disk))
