"""`filesystem.Filesystem`: look at files, move, make and remove them, watch directories."""

from __future__ import annotations

import errno
import json
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

from sandgate.envd import trees
from sandgate.envd.connect import Code, ConnectError, Message, encode_frame, invalid
from sandgate.envd.entries import entry_info
from sandgate.envd.paths import PathError, ensure_directories, resolve
from sandgate.envd.rpc import Call, Reply
from sandgate.envd.watch import Watcher, WatchTable

_MAX_LISTED = 200_000
_NETWORK_FILE_SYSTEMS = ("nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "fuse")
_WATCH_START = encode_frame(b'{"start":{}}')
_WATCH_KEEPALIVE = encode_frame(b'{"keepalive":{}}')


class FilesystemService:
    """The methods of the service. Files are handled as root and then given to the user."""

    def __init__(self, watches: WatchTable) -> None:
        self._watches = watches

    async def stat(self, call: Call, message: Message) -> dict[str, Any]:
        """`Stat`: one entry."""
        return {"entry": _entry(call, _path(call, message.text("path")))}

    async def list_dir(self, call: Call, message: Message) -> dict[str, Any]:
        """`ListDir`: the entries below a directory, `depth` levels down."""
        requested = _path(call, message.text("path"))
        depth = message.uint32("depth") or 1
        resolved = _resolve_directory(requested)
        entries = []
        try:
            async for name, _ in trees.walk(resolved, depth):
                shown = f"{requested.rstrip('/')}/{name}"
                try:
                    entries.append(entry_info(f"{resolved}/{name}", call.users, shown))
                except FileNotFoundError:
                    continue
                if len(entries) > _MAX_LISTED:
                    raise trees.TooManyEntriesError(
                        f"{requested} has more than {_MAX_LISTED} entries at this depth"
                    )
        except trees.TooManyEntriesError as exc:
            text = f"{exc}; list a smaller directory or fewer levels"
            raise ConnectError(Code.RESOURCE_EXHAUSTED, text) from exc
        except OSError as exc:
            text = f"error reading directory {requested}: {exc.strerror}"
            raise ConnectError(Code.INTERNAL, text) from exc
        return {"entries": entries}

    async def make_dir(self, call: Call, message: Message) -> dict[str, Any]:
        """`MakeDir`: a directory, and those above it."""
        path = _path(call, message.text("path"))
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError:
            _ensure(path, call)
            return {"entry": _entry(call, path)}
        except NotADirectoryError as exc:
            raise invalid(f"path {path} leads through something that is no directory") from exc
        if is_directory:
            raise ConnectError(Code.ALREADY_EXISTS, f"directory already exists: {path}")
        raise invalid(f"path already exists but it is not a directory: {path}")

    async def move(self, call: Call, message: Message) -> dict[str, Any]:
        """`Move`: rename, also to another directory, which is made if it is missing."""
        source = _path(call, message.text("source"))
        destination = _path(call, message.text("destination"))
        if not os.path.lexists(source):
            raise ConnectError(Code.NOT_FOUND, f"source file not found: {source}")
        _ensure(os.path.dirname(destination.rstrip("/")) or "/", call)
        try:
            os.rename(source, destination)
        except FileNotFoundError as exc:
            raise ConnectError(Code.NOT_FOUND, f"source file not found: {source}") from exc
        except OSError as exc:
            text = f"error renaming {source} to {destination}: {exc.strerror}"
            if exc.errno == errno.EXDEV:
                text += "; they are on different file systems: copy it, then remove it"
            raise ConnectError(Code.INTERNAL, text) from exc
        return {"entry": _entry(call, destination)}

    async def remove(self, call: Call, message: Message) -> dict[str, Any]:
        """`Remove`: a file or a whole directory. Nothing there is no error."""
        path = _path(call, message.text("path"))
        try:
            await trees.remove(path)
        except OSError as exc:
            text = f"error removing file or directory {path}: {exc.strerror}"
            raise ConnectError(Code.INTERNAL, text) from exc
        return {}

    async def watch_dir(self, call: Call, message: Message, reply: Reply) -> None:
        """`WatchDir`: stream what happens in a directory until the client leaves."""
        watcher = await self._watch(call, message)
        keepalive = call.keepalive()
        try:
            await reply.send(_WATCH_START)
            while True:
                events = await watcher.wait(keepalive)
                frames = [
                    encode_frame(json.dumps({"filesystem": event}).encode()) for event in events
                ]
                await reply.send(b"".join(frames) or _WATCH_KEEPALIVE)
        finally:
            self._watches.close(watcher)

    async def create_watcher(self, call: Call, message: Message) -> dict[str, Any]:
        """`CreateWatcher`: collect what happens in a directory, to be fetched later."""
        return {"watcherId": self._watches.name(await self._watch(call, message))}

    async def get_watcher_events(self, call: Call, message: Message) -> dict[str, Any]:
        """`GetWatcherEvents`: what has happened since the last call."""
        return {"events": self._watches.find(message.text("watcherId")).take()}

    async def remove_watcher(self, call: Call, message: Message) -> dict[str, Any]:
        """`RemoveWatcher`: end one that was created."""
        self._watches.close(self._watches.find(message.text("watcherId")))
        return {}

    async def _watch(self, call: Call, message: Message) -> Watcher:
        path = _path(call, message.text("path"))
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
        except FileNotFoundError as exc:
            raise ConnectError(Code.NOT_FOUND, f"path {path} not found") from exc
        if not is_directory:
            raise invalid(f"path {path} not a directory")
        if not message.flag("allowNetworkMounts") and _on_network(path):
            raise invalid(
                f"cannot watch path on network filesystem: {path}; "
                "set allow_network_mounts to watch it all the same"
            )
        include_entry = message.flag("includeEntry")
        watcher = Watcher(
            path,
            recursive=message.flag("recursive"),
            describe=partial(_entry_if_there, call) if include_entry else None,
        )
        await self._watches.open(watcher)
        return watcher


def _path(call: Call, path: str) -> str:
    try:
        return resolve(path, call.user(), call.config.default_workdir)
    except PathError as exc:
        raise invalid(str(exc)) from exc


def _entry(call: Call, path: str) -> dict[str, Any]:
    try:
        return entry_info(path, call.users)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ConnectError(Code.NOT_FOUND, f"file not found: {path}") from exc


def _entry_if_there(call: Call, path: str) -> dict[str, Any] | None:
    try:
        return entry_info(path, call.users)
    except OSError:
        return None


def _ensure(path: str, call: Call) -> None:
    try:
        ensure_directories(path, call.user())
    except NotADirectoryError as exc:
        raise invalid(f"{exc.strerror}: {exc.filename}") from exc


def _resolve_directory(path: str) -> str:
    try:
        resolved = os.path.realpath(path, strict=True)
        if stat.S_ISDIR(os.stat(resolved).st_mode):
            return resolved
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise ConnectError(Code.NOT_FOUND, f"path not found: {path}") from exc
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            text = f"cyclic symlink or chain of too many links at '{path}'"
            raise ConnectError(Code.FAILED_PRECONDITION, text) from exc
        raise
    raise invalid(f"path is not a directory: {path}")


def _on_network(path: str) -> bool:
    """Whether `path` is on a file system whose changes by others inotify does not see."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1].startswith(_NETWORK_FILE_SYSTEMS)
    return False
