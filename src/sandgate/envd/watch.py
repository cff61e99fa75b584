"""Directory watches: from kernel events to the events that clients know."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandgate.envd import inotify as kernel
from sandgate.envd import trees
from sandgate.envd.connect import Code, ConnectError
from sandgate.envd.entries import printable

MAX_WATCHERS = 256
MAX_DIRECTORIES = 16_384
MAX_EVENTS = 16_384
_MAX_ANNOUNCED = 65_536
_MASK = (
    kernel.IN_CREATE
    | kernel.IN_MODIFY
    | kernel.IN_ATTRIB
    | kernel.IN_DELETE
    | kernel.IN_MOVED_FROM
    | kernel.IN_MOVED_TO
    | kernel.IN_DELETE_SELF
    | kernel.IN_MOVE_SELF
    | kernel.IN_ONLYDIR
)
_KINDS = (
    (kernel.IN_CREATE | kernel.IN_MOVED_TO, "CREATE"),
    (kernel.IN_MOVED_FROM | kernel.IN_MOVE_SELF, "RENAME"),
    (kernel.IN_ATTRIB, "CHMOD"),
    (kernel.IN_MODIFY, "WRITE"),
    (kernel.IN_DELETE | kernel.IN_DELETE_SELF, "REMOVE"),
)
_KINDS_WITH_ENTRY = ("CREATE", "CHMOD", "WRITE")

Describe = Callable[[str], dict[str, Any] | None]
"""Gives the entry at a path for an event, None if it is gone."""


class Watcher:
    """What one client wants to know, and the events that wait for it."""

    def __init__(self, root: str, recursive: bool, describe: Describe | None) -> None:
        """:param describe: to put the entry into events that have one."""
        self.root = root
        self.recursive = recursive
        self._describe = describe
        self._events: list[dict[str, Any]] = []
        self._error: ConnectError | None = None
        self._wakeup = asyncio.Event()

    def push(self, name: str, kind: str) -> None:
        """Add an event about `name`, relative to the root."""
        if self._error is not None:
            return
        if len(self._events) >= MAX_EVENTS:
            text = f"more than {MAX_EVENTS} events were not fetched; watch less or fetch sooner"
            self.fail(ConnectError(Code.RESOURCE_EXHAUSTED, text))
            return
        event: dict[str, Any] = {"name": printable(name), "type": f"EVENT_TYPE_{kind}"}
        if self._describe is not None and kind in _KINDS_WITH_ENTRY:
            entry = self._describe(os.path.join(self.root, name))
            if entry is not None:
                event["entry"] = entry
        self._events.append(event)
        self._wakeup.set()

    def fail(self, error: ConnectError) -> None:
        """End the watcher; its client is told of `error`."""
        self._error = error
        self._events.clear()
        self._wakeup.set()

    def take(self) -> list[dict[str, Any]]:
        """The events since the last call.

        :raises ConnectError: if events were lost.
        """
        if self._error is not None:
            raise self._error
        self._wakeup.clear()
        events, self._events = self._events, []
        return events

    async def wait(self, seconds: float) -> list[dict[str, Any]]:
        """Like :meth:`take`, but waits up to `seconds` for an event; empty if none came."""
        try:
            async with asyncio.timeout(seconds):
                await self._wakeup.wait()
        except TimeoutError:
            return []
        return self.take()


@dataclass(slots=True)
class _Directory:
    """A directory that the kernel watches, and its place in each watcher's tree."""

    names: dict[Watcher, str] = field(default_factory=dict)
    """Path relative to the watcher's root; empty for the root itself."""
    announced: set[str] = field(default_factory=set)
    """Entries found when the directory was new, whose kernel event may still come."""


class WatchTable:
    """All watchers, on one inotify instance that exists while there are any."""

    def __init__(self) -> None:
        self._inotify: kernel.Inotify | None = None
        self._reader: asyncio.Task[None] | None = None
        self._directories: dict[int, _Directory] = {}
        self._watchers: set[Watcher] = set()
        self._named: dict[str, Watcher] = {}

    async def open(self, watcher: Watcher) -> None:
        """Begin to watch.

        :raises ConnectError: `resource_exhausted` if too much is watched, `internal` otherwise.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            text = f"{MAX_WATCHERS} directories are watched already; remove a watcher first"
            raise ConnectError(Code.RESOURCE_EXHAUSTED, text)
        self._watchers.add(watcher)
        try:
            if self._inotify is None:
                self._inotify = kernel.Inotify()
                self._reader = asyncio.create_task(self._run(self._inotify))
            await self._add_tree(self._inotify, watcher, "")
        except OSError as exc:
            self.close(watcher)
            raise _watch_error(watcher.root, exc) from exc
        except BaseException:
            self.close(watcher)
            raise

    def close(self, watcher: Watcher) -> None:
        """Stop watching, and forget the watcher's name."""
        self._watchers.discard(watcher)
        self._named = {name: w for name, w in self._named.items() if w is not watcher}
        self._drop(watcher, lambda name: True)
        if not self._watchers and self._inotify is not None:
            if self._reader is not None:
                self._reader.cancel()
            self._inotify.close()
            self._inotify = self._reader = None
            self._directories.clear()

    def name(self, watcher: Watcher) -> str:
        """Keep an open watcher for later calls; return its identifier."""
        name = "w" + secrets.token_hex(10)
        self._named[name] = watcher
        return name

    def find(self, name: str) -> Watcher:
        """The watcher with that identifier.

        :raises ConnectError: `not_found`.
        """
        watcher = self._named.get(name)
        if watcher is None:
            raise ConnectError(Code.NOT_FOUND, f"watcher with id {name} not found")
        return watcher

    async def _add_tree(
        self, inotify: kernel.Inotify, watcher: Watcher, name: str, announce: bool = False
    ) -> None:
        """Watch the directory `name` of a watcher and, if it is recursive, those below.

        :param announce: the directory is new: tell what is found in it, since it may have come
            before the kernel watched.
        """
        self._add(inotify, watcher, name)
        if not watcher.recursive:
            return
        root = os.path.join(watcher.root, name)
        async for path, is_directory in trees.walk(root, 1 << 20):
            below = os.path.join(name, path)
            if announce:
                self._announce(watcher, below)
            if is_directory:
                try:
                    self._add(inotify, watcher, below)
                except (FileNotFoundError, NotADirectoryError):
                    continue

    def _add(self, inotify: kernel.Inotify, watcher: Watcher, name: str) -> None:
        if len(self._directories) >= MAX_DIRECTORIES:
            raise OSError(errno.ENOSPC, f"more than {MAX_DIRECTORIES} directories")
        wd = inotify.add(os.path.join(watcher.root, name), _MASK)
        self._directories.setdefault(wd, _Directory()).names[watcher] = name

    def _announce(self, watcher: Watcher, name: str) -> None:
        parent, entry = os.path.split(name)
        for directory in self._directories.values():
            if directory.names.get(watcher) == parent:
                if entry in directory.announced:
                    return
                if len(directory.announced) < _MAX_ANNOUNCED:
                    directory.announced.add(entry)
        watcher.push(name, "CREATE")

    def _drop(self, watcher: Watcher, applies: Callable[[str], bool]) -> None:
        for wd, directory in list(self._directories.items()):
            name = directory.names.get(watcher)
            if name is not None and applies(name):
                del directory.names[watcher]
                if not directory.names:
                    del self._directories[wd]
                    if self._inotify is not None:
                        self._inotify.remove(wd)

    async def _run(self, inotify: kernel.Inotify) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(inotify.fd, readable.set)
        try:
            while True:
                await readable.wait()
                events = inotify.read()
                if not events:
                    readable.clear()
                await self._handle_all(inotify, events)
                # Neither wait above suspends while there are events: let others have their turn.
                await asyncio.sleep(0)
        finally:
            loop.remove_reader(inotify.fd)

    async def _handle_all(self, inotify: kernel.Inotify, events: list[kernel.RawEvent]) -> None:
        left: dict[int, list[tuple[Watcher, str]]] = {}
        for event in events:
            if event.mask & kernel.IN_Q_OVERFLOW:
                for watcher in self._watchers:
                    watcher.fail(ConnectError(Code.INTERNAL, "watcher error: events were lost"))
                continue
            if event.mask & kernel.IN_IGNORED:
                self._directories.pop(event.wd, None)
                continue
            directory = self._directories.get(event.wd)
            if directory is not None:
                for watcher, parent in list(directory.names.items()):
                    await self._handle(inotify, event, directory, watcher, parent, left)
        # A directory that left the tree is no longer watched.
        for moved in left.values():
            for watcher, name in moved:
                self._drop(watcher, _at_or_below(name))

    async def _handle(
        self,
        inotify: kernel.Inotify,
        event: kernel.RawEvent,
        directory: _Directory,
        watcher: Watcher,
        parent: str,
        left: dict[int, list[tuple[Watcher, str]]],
    ) -> None:
        if not event.name and parent:
            return  # the directory above tells the same
        name = os.path.join(parent, event.name)
        announced = event.mask & kernel.IN_CREATE and event.name in directory.announced
        if event.mask & (kernel.IN_CREATE | kernel.IN_DELETE | kernel.IN_MOVED_FROM):
            directory.announced.discard(event.name)
        if not announced:
            for mask, kind in _KINDS:
                if event.mask & mask:
                    watcher.push(name or ".", kind)

        if not (watcher.recursive and event.name and event.mask & kernel.IN_ISDIR):
            return
        if event.mask & kernel.IN_MOVED_FROM:
            left.setdefault(event.cookie, []).append((watcher, name))
        elif event.mask & (kernel.IN_CREATE | kernel.IN_MOVED_TO):
            try:
                await self._add_tree(
                    inotify, watcher, name, announce=bool(event.mask & kernel.IN_CREATE)
                )
            except (FileNotFoundError, NotADirectoryError):
                return
            except (OSError, trees.TooManyEntriesError) as exc:
                watcher.fail(_watch_error(name, exc))
            moved = left.get(event.cookie, [])
            for pair in [pair for pair in moved if pair[0] is watcher]:
                moved.remove(pair)
                self._drop(watcher, _at_or_below(pair[1]))


def _at_or_below(name: str) -> Callable[[str], bool]:
    return lambda other: other == name or other.startswith(name + "/")


def _watch_error(path: str, exc: Exception) -> ConnectError:
    text = f"error watching {path}: {exc}"
    if isinstance(exc, OSError) and exc.errno not in (errno.ENOSPC, errno.EMFILE):
        return ConnectError(Code.INTERNAL, text)
    return ConnectError(Code.RESOURCE_EXHAUSTED, text)
