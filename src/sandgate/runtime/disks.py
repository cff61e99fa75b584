"""A disk for each sandbox: a sparse file with an ext4 file system, mounted through a loop device.

A file system of its own is what bounds a sandbox's blocks and inodes on any kernel (project quotas
are compiled out of many), makes removal independent of how many files were made, and disappears by
itself with the last mount namespace that holds it: the loop device is marked to clear itself.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandgate.runtime import linux

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_EXT4_IOC_SHUTDOWN = 0x8004587D
_SHUTDOWN_NOLOGFLUSH = 2
_BLOCK = 4096

_WORTH_ABANDONING = 64 << 20
_MKFS_OPTIONS = (
    *("-m", "0", "-b", str(_BLOCK)),
    # An inode for each 8 KiB: trees of small files fit.
    *("-i", "8192"),
    # Without a journal: a disk does not outlive the machine's uptime.
    *("-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard"),
)


@dataclass(frozen=True, slots=True)
class DiskFormat:
    """What a fresh file system of one size looks like: the few blocks of it that are not zero."""

    size: int
    """Bytes."""
    extents: tuple[tuple[int, bytes], ...]

    @classmethod
    def make(cls, size_mb: int) -> DiskFormat:
        """Run mkfs.ext4 once and keep what it wrote. Raises OSError or CalledProcessError."""
        size = size_mb << 20
        with tempfile.NamedTemporaryFile() as image:
            image.truncate(size)
            subprocess.run(
                ["mkfs.ext4", "-q", "-F", *_MKFS_OPTIONS, image.name],
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
            )
            return cls(size, tuple(_data_extents(image.fileno())))

    def write(self, path: Path) -> None:
        """Create `path` as a sparse image of this format."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, self.size)
            for offset, data in self.extents:
                os.pwrite(fd, data, offset)
        finally:
            os.close(fd)


def _data_extents(fd: int) -> list[tuple[int, bytes]]:
    extents: list[tuple[int, bytes]] = []
    offset = 0
    while True:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return extents
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        extents.append((start, os.pread(fd, offset - start, start)))


def mount_disk(path: Path) -> int:
    """Mount the image at `path`, detached. Returns the mount's descriptor; raises OSError."""
    loop, device = _attach_loop(path)
    try:
        return linux.create_mount(
            "ext4",
            f"/dev/{device}",
            # discard: what the sandbox deletes is given back to the machine.
            ("discard", "noinit_itable"),
            linux.MOUNT_ATTR_NODEV,
        )
    finally:
        os.close(loop)


def abandon_disk(fd: int) -> None:
    """Tell the file system at `fd` that it is not needed any more: unmounting writes nothing."""
    usage = os.fstatvfs(fd)
    if (usage.f_blocks - usage.f_bfree) * usage.f_frsize < _WORTH_ABANDONING:
        return  # the kernel logs an abandoned file system as an alert
    fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _SHUTDOWN_NOLOGFLUSH))


def disk_usage(disk: int | str) -> tuple[int, int]:
    """Bytes that are used, and bytes that there are, in the file system at `disk`."""
    usage = os.statvfs(disk)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize, usage.f_blocks * usage.f_frsize


def _attach_loop(path: Path) -> tuple[int, str]:
    """A loop device for `path` that clears itself after its last user: (descriptor, name)."""
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
        try:
            while True:
                number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
                loop = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.ioctl(loop, _LOOP_CONFIGURE, _loop_config(backing))
                except OSError as error:
                    os.close(loop)
                    if error.errno == errno.EBUSY:  # taken by somebody else in between
                        continue
                    raise
                return loop, f"loop{number}"
        finally:
            os.close(control)
    finally:
        os.close(backing)


def _loop_config(backing: int) -> bytes:
    """struct loop_config: backing file, block size, struct loop_info64, reserved."""
    info = struct.pack("5Q4I64s64s32s2Q", *[0] * 8, _LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("II", backing, _BLOCK) + info + bytes(64)


assert len(_loop_config(0)) == 304
assert ctypes.sizeof(ctypes.c_long) == 8, "a 64-bit machine is needed"
