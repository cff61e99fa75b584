"""What a power cut must not undo, and files that are replaced whole."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(
    path: Path, content: bytes, *, mode: int = 0o600, group: int | None = None, synced: bool = True
) -> None:
    """Give `path` other content in one step: whoever reads finds all of the old or all of the new.

    The file has `mode` and, if given, the group's id `group`; nobody else can read it before. A
    link that stands in its place is replaced, never followed. `synced`: a power cut does not undo
    it. Raises OSError, and then leaves everything as it was.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(draft, flags, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if group is not None:
                os.fchown(file.fileno(), -1, group)
            os.fchmod(file.fileno(), mode)
            if synced:
                os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    if synced:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """See to it that the names in `directory` are on the disk as they are now. Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
