"""`POST /files` and `POST /files/compose`: write files, as streams of bounded memory.

A file is written in place, not beside and then renamed, because a watcher must see exactly one
CREATE, one CHMOD (from the change of owner) and one WRITE for a small new file.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from sandgate.envd import xattrs
from sandgate.envd.connect import ConnectError, Message
from sandgate.envd.encoding import header_parameters
from sandgate.envd.entries import printable
from sandgate.envd.files import FileAccess, FileRequest, HttpError
from sandgate.envd.multipart import MultipartError, MultipartParser, PartBegin, PartData
from sandgate.envd.paths import ensure_directories
from sandgate.envd.trees import TimeSlice
from sandgate.envd.users import User

_BUFFER = 256 << 10
_IDLE = 600.0
_MAX_FILES = 10_000
_MAX_COMPOSE_BODY = 4 << 20
_GZIP_WINDOW = 31
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_BAD_PATH = (errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.EEXIST)
_FLAGS = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Uploads:
    """Takes files from clients."""

    def __init__(self, access: FileAccess) -> None:
        self._access = access

    async def post(self, request: web.Request) -> web.StreamResponse:
        """Handle one upload.

        :raises HttpError: if it fails; nothing half-written keeps a name that was new.
        """
        file_request = self._access.check(request, "write")
        try:
            metadata = xattrs.from_headers(request.headers)
        except xattrs.MetadataError as exc:
            raise HttpError(400, str(exc)) from exc
        content_type, parameters = header_parameters(request.headers.get("Content-Type", ""))
        try:
            if content_type == "application/octet-stream":
                written = [await _write_raw(request, file_request, metadata)]
            elif content_type.startswith("multipart/"):
                parser = MultipartParser(parameters.get("boundary", ""))
                written = await _write_parts(request, file_request, metadata, parser)
            else:
                raise HttpError(
                    400,
                    f"unsupported content type: {content_type or 'none'}, "
                    "expected multipart/form-data or application/octet-stream",
                )
        except MultipartError as exc:
            raise HttpError(400, f"error reading form: {exc}") from exc
        return web.json_response(written)

    async def compose(self, request: web.Request) -> web.StreamResponse:
        """Join files into one and remove them.

        :raises HttpError: if it fails; then all files are as they were.
        """
        body = await request.content.read(_MAX_COMPOSE_BODY + 1)
        while chunk := await request.content.read(_MAX_COMPOSE_BODY + 1):
            body += chunk
            if len(body) > _MAX_COMPOSE_BODY:
                raise HttpError(413, f"the body is longer than {_MAX_COMPOSE_BODY} bytes")
        try:
            message = Message.parse(body)
            names = message.texts("sourcePaths")
            destination = message.text("destination")
            username = message.optional_text("username")
        except ConnectError as exc:
            raise HttpError(400, f"invalid request body: {exc}") from exc
        if not names or not destination:
            missing = "destination" if names else "source_paths"
            raise HttpError(400, f"{missing} must not be empty")

        user = self._access.find_user(username)
        files = FileRequest(user, None, self._access.identity.config.default_workdir)
        target = files.resolve(destination)
        sources = [files.resolve(name) for name in names]
        for name, source in zip(names, sources, strict=True):
            _check_source(name, source, target)
        await _concatenate(sources, target, user)
        return web.json_response(_entry(target))


class _NewFile:
    """A file that is being written, in place. Left without :meth:`finish`, it goes again."""

    def __init__(self, path: str, user: User, expected: int | None = None) -> None:
        """Open for writing, the old content gone and the owner set.

        :param expected: number of bytes to come, if known: too many fail before the old content
            is touched.
        :raises HttpError: if that cannot be.
        """
        self._path = path
        self._buffer = bytearray()
        self._is_new = True
        self._is_emptied = False
        self._finished = False
        with _as_http_error(path, "error opening file"):
            ensure_directories(os.path.dirname(path) or "/", user)
            try:
                self._fd = os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                self._is_new = False
                self._fd = _open_existing(path)
        try:
            self._prepare(user, expected)
        except BaseException:
            self._abandon()
            raise

    def _prepare(self, user: User, expected: int | None) -> None:
        info = os.fstat(self._fd)
        if not stat.S_ISREG(info.st_mode):
            raise HttpError(400, f"path is not a regular file: {self._path}")
        space = os.fstatvfs(self._fd)
        free = space.f_bavail * space.f_frsize + info.st_blocks * 512
        if expected is not None and space.f_blocks and expected > free:
            raise _no_space(f"attempted to write {expected} bytes, {free} are free: ")
        with _as_http_error(self._path, "error changing file ownership"):
            if not self._is_new:
                self._is_emptied = True
                os.ftruncate(self._fd, 0)
            os.fchown(self._fd, user.uid, user.gid)

    def write(self, data: bytes) -> None:
        """Append `data`. A small file reaches the disk in one piece, at the end."""
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def finish(self, metadata: dict[str, str]) -> None:
        """Write what is left, and the metadata; the file stays."""
        self._flush()
        with _as_http_error(self._path, "error writing file metadata"):
            xattrs.replace(self._fd, metadata)
        self._finished = True

    def _flush(self) -> None:
        with _as_http_error(self._path, "error writing file"):
            while self._buffer:
                del self._buffer[: os.write(self._fd, self._buffer)]

    def _abandon(self) -> None:
        with suppress(OSError):
            if self._is_new:
                os.unlink(self._path)
            elif self._is_emptied:
                os.ftruncate(self._fd, 0)
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._finished:
            os.close(self._fd)
        else:
            self._abandon()


@contextmanager
def _as_http_error(path: str, doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_SPACE:
            raise _no_space("") from exc
        if exc.errno == errno.EISDIR:
            raise HttpError(400, f"path is a directory: {path}") from exc
        status = 400 if exc.errno in _BAD_PATH else 500
        raise HttpError(status, f"{doing}: {path}: {exc.strerror or exc}") from exc


def _no_space(detail: str) -> HttpError:
    return HttpError(507, f"{detail}not enough disk space available")


async def _write_raw(
    request: web.Request, files: FileRequest, metadata: dict[str, str]
) -> dict[str, Any]:
    if files.path is None:
        raise HttpError(400, "path query parameter is required for raw body upload")
    path = files.resolve(files.path)
    plain = _body_coding(request) == "identity"
    with _NewFile(path, files.user, request.content_length if plain else None) as file:
        async for chunk in _body(request):
            file.write(chunk)
        file.finish(metadata)
    return _entry(path)


async def _write_parts(
    request: web.Request, files: FileRequest, metadata: dict[str, str], parser: MultipartParser
) -> list[dict[str, Any]]:
    written: dict[str, dict[str, Any]] = {}
    with ExitStack() as open_file:
        file: _NewFile | None = None
        path = ""
        async for chunk in _body(request):
            for event in parser.feed(chunk):
                if isinstance(event, PartBegin):
                    name = _file_name(event, files)
                    if name is None:
                        continue
                    path = files.resolve(name)
                    _check_another(path, written)
                    file = open_file.enter_context(_NewFile(path, files.user))
                elif file is None:
                    continue
                elif isinstance(event, PartData):
                    file.write(event.data)
                else:
                    file.finish(metadata)
                    open_file.close()
                    written[path] = _entry(path)
                    file = None
        parser.close()
    if not written:
        raise HttpError(400, "the form has no part named 'file' with a file name")
    return list(written.values())


def _file_name(part: PartBegin, files: FileRequest) -> str | None:
    kind, parameters = header_parameters(part.headers.get("content-disposition", ""))
    if kind != "form-data" or parameters.get("name") != "file":
        return None
    name = files.path if files.path is not None else parameters.get("filename")
    if name is None:
        raise HttpError(400, "a part named 'file' has no filename and there is no path parameter")
    return name


def _check_another(path: str, written: dict[str, dict[str, Any]]) -> None:
    if path in written:
        raise HttpError(
            400,
            f"you cannot upload multiple files to the same path '{path}' in one upload request, "
            "only the first specified file was uploaded",
        )
    if len(written) >= _MAX_FILES:
        raise HttpError(400, f"more than {_MAX_FILES} files in one upload request; send several")


def _body_coding(request: web.Request) -> str:
    coding = request.headers.get("Content-Encoding", "").strip().lower() or "identity"
    if coding not in ("identity", "gzip"):
        raise HttpError(400, f"unsupported Content-Encoding: {coding}, supported: gzip, identity")
    return coding


async def _body(request: web.Request) -> AsyncIterator[bytes]:
    """The body in pieces of bounded size, decompressed."""
    compressed = _body_coding(request) == "gzip"
    decompressor = zlib.decompressobj(_GZIP_WINDOW)
    began = False
    try:
        async with asyncio.timeout(_IDLE) as idle:
            async for chunk in request.content.iter_any():
                idle.reschedule(asyncio.get_running_loop().time() + _IDLE)
                if not compressed:
                    yield chunk
                    continue
                while chunk:
                    if decompressor.eof:  # another member follows
                        decompressor = zlib.decompressobj(_GZIP_WINDOW)
                    began = True
                    yield decompressor.decompress(chunk, _BUFFER)
                    chunk = decompressor.unconsumed_tail or decompressor.unused_data
    except zlib.error as exc:
        raise HttpError(400, f"error decompressing request body: {exc}") from exc
    except TimeoutError as exc:
        raise HttpError(408, f"no data came for {_IDLE:.0f} seconds") from exc
    if compressed and not (began and decompressor.eof):
        raise HttpError(400, "error decompressing request body: it ends too early")


def _entry(path: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": printable(path),
        "name": printable(os.path.basename(path)),
        "type": "file",
    }
    metadata = xattrs.read(os.path.realpath(path))
    if metadata:
        entry["metadata"] = metadata
    return entry


def _check_source(name: str, source: str, target: str) -> None:
    if source == target:
        raise HttpError(400, f"source path '{name}' cannot be the same as destination")
    try:
        mode = os.stat(source).st_mode
    except OSError as exc:
        raise HttpError(404, f"source file not found: {name}") from exc
    if not stat.S_ISREG(mode):
        raise HttpError(400, f"source path is not a regular file: {name}")


async def _concatenate(sources: list[str], target: str, user: User) -> None:
    time_slice = TimeSlice()
    temporary = f"{target}.{secrets.token_hex(8)}.tmp"
    with _NewFile(temporary, user) as file:
        for source in sources:
            for chunk in _chunks(source):
                file.write(chunk)
                await time_slice.pause()
        file.finish({})
    try:
        with _as_http_error(target, "error finalizing compose"):
            os.rename(temporary, target)
    except HttpError:
        os.unlink(temporary)
        raise
    for source in sources:
        with suppress(OSError):
            os.unlink(source)


def _open_existing(path: str) -> int:
    try:
        # Without O_CREAT, with which the kernel lets nobody, root included, open the file of
        # another user in /tmp (fs.protected_regular, set on most machines).
        return os.open(path, _FLAGS)
    except FileNotFoundError:  # a link that leads to no file yet
        return os.open(path, _FLAGS | os.O_CREAT, 0o666)


def _chunks(source: str) -> Iterator[bytes]:
    with _as_http_error(source, "error composing"):
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as file:
            while chunk := file.read(_BUFFER):
                yield chunk
