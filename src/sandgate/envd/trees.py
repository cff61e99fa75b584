"""Directory trees of any size and depth, walked without holding up the event loop."""

from __future__ import annotations

import asyncio
import os
import secrets
import stat
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass

MAX_ENTRIES = 200_000
"""Most entries of one directory that :func:`walk` will put in order."""
_SLICE = 0.005
_MAX_OPEN = 64
_ATTEMPTS = 3
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooManyEntriesError(Exception):
    """A directory is too large to be listed; the text names it."""


class TimeSlice:
    """Gives way to other work of the event loop every few milliseconds."""

    def __init__(self) -> None:
        self._until = time.monotonic() + _SLICE

    async def pause(self) -> None:
        """To be awaited between steps that are short each."""
        if time.monotonic() >= self._until:
            await asyncio.sleep(0)
            self._until = time.monotonic() + _SLICE


async def walk(root: str, depth: int) -> AsyncIterator[tuple[str, bool]]:
    """Yield each path below `root`, relative to it, and whether it is a directory.

    Depth first, in the order of the names. Symbolic links are not followed. What vanishes on the
    way is passed over.

    :param depth: levels to descend; 1 is the directory's own entries.
    :raises OSError: if a directory cannot be read.
    :raises TooManyEntriesError: if one has more than :data:`MAX_ENTRIES`.
    """
    time_slice = TimeSlice()
    stack: list[Iterator[tuple[str, bool]]] = [iter(await _sorted_entries(root, time_slice))]
    names: list[str] = []
    while stack:
        await time_slice.pause()
        name, is_directory = next(stack[-1], ("", False))
        if not name:
            stack.pop()
            if names:
                names.pop()
            continue
        path = "/".join([*names, name])
        yield path, is_directory
        if is_directory and len(stack) < depth:
            try:
                entries = await _sorted_entries(f"{root}/{path}", time_slice)
            except (FileNotFoundError, NotADirectoryError):
                continue
            stack.append(iter(entries))
            names.append(name)


async def _sorted_entries(path: str, time_slice: TimeSlice) -> list[tuple[str, bool]]:
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            found.append((entry.name, entry.is_dir(follow_symlinks=False)))
            if len(found) > MAX_ENTRIES:
                raise TooManyEntriesError(f"{path} has more than {MAX_ENTRIES} entries")
            await time_slice.pause()
    found.sort()
    return found


@dataclass(slots=True)
class _Level:
    """A directory that is being emptied."""

    fd: int
    name: str
    left: list[str]
    """Directories in it, still to be removed."""


async def remove(path: str) -> None:
    """Remove `path` and all below it. Nothing there is no error.

    Links are removed, not followed, also if someone swaps a directory for a link meanwhile. Open
    descriptors are bounded: what lies deeper is first moved up to the top of the tree.

    :raises OSError: if the kernel refuses.
    """
    path = path.rstrip("/") or "/"
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        for _ in range(_ATTEMPTS):
            top = os.open(path, _DIR_FLAGS)
            try:
                await _empty(top)
            finally:
                os.close(top)
            # Refused if someone has added a file meanwhile.
            with suppress(OSError):
                os.rmdir(path)
                return
        os.rmdir(path)
    except FileNotFoundError:
        return


async def _empty(top: int) -> None:
    time_slice = TimeSlice()
    levels = [_Level(top, "", await _remove_files(top, time_slice))]
    try:
        while levels:
            level = levels[-1]
            if not level.left:
                levels.pop()
                if not levels:
                    return
                os.close(level.fd)
                with suppress(FileNotFoundError, NotADirectoryError):
                    os.rmdir(level.name, dir_fd=levels[-1].fd)
                continue
            name = level.left.pop()
            with suppress(FileNotFoundError, NotADirectoryError):
                if len(levels) >= _MAX_OPEN:
                    fresh = f".removing-{secrets.token_hex(8)}"
                    os.rename(name, fresh, src_dir_fd=level.fd, dst_dir_fd=top)
                    levels[0].left.append(fresh)
                    continue
                fd = os.open(name, _DIR_FLAGS, dir_fd=level.fd)
                levels.append(_Level(fd, name, []))
                levels[-1].left = await _remove_files(fd, time_slice)
    finally:
        for level in levels[1:]:
            os.close(level.fd)


async def _remove_files(directory: int, time_slice: TimeSlice) -> list[str]:
    """Remove what is no directory; return the names of the directories."""
    left = []
    with os.scandir(directory) as entries:
        for entry in entries:
            await time_slice.pause()
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    left.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=directory)
    return left
