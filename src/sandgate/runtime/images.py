"""Where images of disks are kept, and how they are copied.

`disks/running/<slot>.img` belongs to a cell, `disks/<sandbox>.img` to a sandbox without processes,
`snapshots/<snapshot>.img` to nobody. One image changes hands by its name: links are made before
names are taken away, so that a crash in between loses nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
from pathlib import Path

from sandgate.durable import sync_directory
from sandgate.runtime import disks

_FICLONE = 0x40049409
_CHUNK = 1 << 30
_SUFFIX = ".img"
_DRAFT = ".part"
_NO_CLONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)

_log = logging.getLogger(__name__)


class Images:
    """The images of one node. Names are checked by the caller."""

    def __init__(self, data_dir: Path) -> None:
        self._kept = data_dir / "disks"
        self._running = self._kept / "running"
        self._snapshots = data_dir / "snapshots"

    def setup(self) -> None:
        """Make the directories (0700); remove copies that were never finished."""
        for directory in (self._running, self._snapshots, self._kept):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for draft in directory.glob(f"*{_DRAFT}"):
                draft.unlink()

    def repair(self) -> None:
        """See to the disks that were in use when the machine lost power. Raises OSError."""
        for name in self.all_kept():
            image = self.kept(name)
            if disks.is_clean(image) or disks.is_attached(image):
                continue
            if disks.repair_disk(image):
                _log.warning("the disk of sandbox %s was not unmounted and is repaired", name)
            else:
                _log.error("the disk of sandbox %s is damaged and is removed", name)
                image.unlink()

    def running(self, slot: int) -> Path:
        """The image of the cell in `slot`."""
        return self._running / f"{slot}{_SUFFIX}"

    def drop_running(self, but: set[int]) -> None:
        """Remove the images of cells, but those in the slots named."""
        for path in self._running.glob(f"*{_SUFFIX}"):
            if int(path.stem) not in but:
                path.unlink()

    def kept(self, sandbox_id: str) -> Path:
        """The image of a sandbox that has no processes."""
        return self._kept / f"{sandbox_id}{_SUFFIX}"

    def snapshot(self, snapshot_id: str) -> Path:
        """The image of a snapshot."""
        return self._snapshots / f"{snapshot_id}{_SUFFIX}"

    def all_kept(self) -> list[str]:
        """The sandboxes that have an image and no processes."""
        return sorted(path.stem for path in self._kept.glob(f"*{_SUFFIX}"))

    def all_snapshots(self) -> list[str]:
        """The snapshots there are."""
        return sorted(path.stem for path in self._snapshots.glob(f"*{_SUFFIX}"))

    def keep(self, slot: int, sandbox_id: str) -> None:
        """Let the image of the cell in `slot` outlive it. Raises OSError."""
        kept = self.kept(sandbox_id)
        kept.unlink(missing_ok=True)
        os.link(self.running(slot), kept)
        sync_directory(kept.parent)

    def forget(self, sandbox_id: str) -> None:
        """Remove what is kept of a sandbox, if anything is. Raises OSError."""
        kept = self.kept(sandbox_id)
        try:
            kept.unlink()
        except FileNotFoundError:
            return
        # After a power cut it must not be there again, with what a later life made of it.
        sync_directory(kept.parent)


def copy(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`: shared blocks where the file system can, else sparse.

    `target` appears when it is complete. Raises OSError.
    """
    draft = target.with_suffix(_DRAFT)
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, read)
        write = os.open(draft, flags, 0o600)
        stack.callback(os.close, write)
        try:
            try:
                fcntl.ioctl(write, _FICLONE, read)
            except OSError as error:
                if error.errno not in _NO_CLONE:
                    raise
                _copy_data(read, write)
            os.fsync(write)
            draft.replace(target)
        except OSError:
            draft.unlink()
            raise
    sync_directory(target.parent)


def _copy_data(read: int, write: int) -> None:
    size = os.fstat(read).st_size
    os.ftruncate(write, size)
    end = 0
    while True:
        try:
            start = os.lseek(read, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        end = os.lseek(read, start, os.SEEK_HOLE)
        while start < end:
            done = os.copy_file_range(read, write, min(_CHUNK, end - start), start, start)
            if done == 0:
                return
            start += done
