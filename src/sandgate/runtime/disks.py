"""A disk for each sandbox: a sparse file with an ext4 file system, mounted through a loop device.

A file system of its own is what bounds a sandbox's blocks and inodes on any kernel (project quotas
are compiled out of many), makes removal independent of how many files were made, and disappears by
itself with the last mount namespace that holds it: the loop device is marked to clear itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sandgate.runtime import linux

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO = struct.Struct("5Q4I64s64s32s2Q")
"""struct loop_info64; its second field is the inode."""
_LO_FLAGS_AUTOCLEAR = 4
_EXT4_STATE = struct.Struct("<HH")
"""`s_magic` and `s_state` of struct ext4_super_block."""
_EXT4_STATE_AT = 1024 + 0x38
_EXT4_MAGIC = 0xEF53
_EXT4_VALID = 1
"""Set by unmounting, taken away by mounting."""
_MOST_FIXED = 2
"""The greatest exit status of e2fsck, of those that say that the file system is good now."""
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
_ENVIRONMENT = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}


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
                env=_ENVIRONMENT,
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
            # Its files are seen through the sandbox's own mount, which decides for itself.
            linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOSUID,
        )
    finally:
        os.close(loop)


def prepare_disk(mount: int) -> None:
    """Make the directories for overlayfs on a disk, or make those of an earlier use good again.

    Owners are those inside the sandbox: the disk can be used with any range of ids.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir("upper", dir_fd=mount)
        os.chmod("upper", 0o755, dir_fd=mount)  # noqa: S103 - becomes the sandbox's root directory
    # It holds no data. Used without care for a crash of the machine (volatile), it refuses a
    # second use; whoever keeps a disk has seen to it that all was written.
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree("work", dir_fd=mount)
    os.mkdir("work", 0o700, dir_fd=mount)


def is_attached(image: Path) -> bool:
    """Whether a loop device uses the file at `image`, by this name or by one below its directory.

    The kernel lets go of it a moment after the last process that had it mounted.
    """
    inode, directory = image.stat().st_ino, str(image.parent)
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just been let go of
            if path.read_text().startswith(directory) and _inode(path.parts[3]) == inode:
                return True
    return False


def _inode(device: str) -> int:
    """Of the file that a loop device uses. Raises OSError."""
    loop = os.open(f"/dev/{device}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = fcntl.ioctl(loop, _LOOP_GET_STATUS64, bytes(_LOOP_INFO.size))
    finally:
        os.close(loop)
    inode: int = _LOOP_INFO.unpack(status)[1]
    return inode


def is_clean(image: Path) -> bool:
    """Whether the file system in `image` was unmounted, or is new. Raises OSError."""
    with image.open("rb") as file:
        file.seek(_EXT4_STATE_AT)
        found = file.read(_EXT4_STATE.size)
    if len(found) < _EXT4_STATE.size:
        return False
    magic, state = _EXT4_STATE.unpack(found)
    return bool(magic == _EXT4_MAGIC and state & _EXT4_VALID)


def repair_disk(image: Path) -> bool:
    """Make the file system in `image`, which the machine lost while it was mounted, good again.

    Returns whether that was possible. Raises OSError.
    """
    done = subprocess.run(
        ["e2fsck", "-f", "-y", str(image)], capture_output=True, check=False, env=_ENVIRONMENT
    )
    return done.returncode <= _MOST_FIXED


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
    info = _LOOP_INFO.pack(*[0] * 8, _LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    return struct.pack("II", backing, _BLOCK) + info + bytes(64)


assert len(_loop_config(0)) == 304
assert ctypes.sizeof(ctypes.c_long) == 8, "a 64-bit machine is needed"
