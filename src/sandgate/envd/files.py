"""`GET /files`: downloads, as a stream of bounded memory."""

from __future__ import annotations

import asyncio
import io
import mimetypes
import os
import stat
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from sandgate.envd.auth import AuthError, Operation
from sandgate.envd.encoding import (
    ByteRange,
    NotAcceptableError,
    UnsatisfiableRangeError,
    content_disposition,
    http_date,
    parse_http_date,
    parse_range,
    wants_gzip,
)
from sandgate.envd.identity import Identity
from sandgate.envd.paths import PathError, resolve
from sandgate.envd.users import User, UserDatabase

_CHUNK = 256 << 10
_GZIP_LEVEL = 1
_GZIP_WINDOW = 31


class HttpError(Exception):
    """A request over plain HTTP that failed; becomes JSON `{code, message}`."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class FileRequest:
    """What `/files` requests have in common, checked."""

    user: User
    path: str | None
    """The query parameter, as given."""
    workdir: str | None

    def resolve(self, path: str) -> str:
        """Absolute path.

        :raises HttpError: 400 for an impossible one.
        """
        try:
            return resolve(path, self.user, self.workdir)
        except PathError as exc:
            raise HttpError(400, f"error resolving path: {exc}") from exc


@dataclass(frozen=True, slots=True)
class FileAccess:
    """Authorises `/files` requests."""

    identity: Identity
    users: UserDatabase

    def check(self, request: web.Request, operation: Operation) -> FileRequest:
        """Check token or signature, then the user.

        :raises HttpError: 401.
        """
        query = request.query
        try:
            given = request.headers.get("X-Access-Token")
            self.identity.token.check_signed(given, query, operation, time.time())
        except AuthError as exc:
            raise HttpError(401, str(exc)) from exc
        workdir = self.identity.config.default_workdir
        return FileRequest(self.find_user(query.get("username")), query.get("path"), workdir)

    def find_user(self, name: str | None) -> User:
        """The named user, or the default one.

        :raises HttpError: 401 if there is none of that name.
        """
        name = name or self.identity.config.default_user
        user = self.users.find(name)
        if user is None:
            raise HttpError(401, f"error looking up user '{name}': unknown user {name}")
        return user


class Downloads:
    """Serves files."""

    def __init__(self, access: FileAccess) -> None:
        self._access = access
        # Only the types that Python knows by itself: the system's lists are the host's.
        self._types = mimetypes.MimeTypes(())

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Handle one request.

        :raises HttpError: if there is nothing to serve.
        """
        file_request = self._access.check(request, "read")
        path = file_request.resolve(file_request.path or "")
        fd = _open(path)
        try:
            return await self._serve(request, path, fd)
        finally:
            os.close(fd)

    async def _serve(self, request: web.Request, path: str, fd: int) -> web.StreamResponse:
        info = os.fstat(fd)
        modified = int(info.st_mtime)
        headers = {
            "Content-Type": self._types.guess_type(path)[0] or "application/octet-stream",
            "Content-Disposition": content_disposition(os.path.basename(path)),
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
        }
        conditional = {"Range", "If-Modified-Since", "If-None-Match", "If-Range"}
        partly = any(name in request.headers for name in conditional)
        try:
            compress = wants_gzip(request.headers.get("Accept-Encoding"), identity_only=partly)
        except NotAcceptableError as exc:
            raise HttpError(406, f"error parsing Accept-Encoding: {exc}") from exc
        if compress:
            headers["Content-Encoding"] = "gzip"
            return await _send(request, 200, headers, None, _in_pieces(_gzip(_read(fd, None))))

        if 0 <= modified < 1 << 37:
            headers["Last-Modified"] = http_date(modified)
        since = parse_http_date(request.headers.get("If-Modified-Since"))
        if since is not None and modified <= since and "If-None-Match" not in request.headers:
            return web.Response(status=304, headers=headers)

        headers["Accept-Ranges"] = "bytes"
        part = _requested_range(request, info.st_size, modified)
        if part is not None:
            headers["Content-Range"] = f"bytes {part.first}-{part.last}/{info.st_size}"
            return await _send(request, 206, headers, part.size, _from_file(request, fd, part))
        if info.st_size == 0:
            return await _send_unsized(request, headers, fd)
        # A file that is written anew may be shorter by now; what it is then is served.
        first = os.pread(fd, min(info.st_size, _CHUNK), 0)
        if len(first) < min(info.st_size, _CHUNK) or len(first) == info.st_size:
            return web.Response(headers=headers, body=first)
        whole = ByteRange(0, info.st_size - 1)
        return await _send(request, 200, headers, info.st_size, _from_file(request, fd, whole))


def _open(path: str) -> int:
    try:
        # Not blocking: a FIFO or a device would hold up everything.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise HttpError(404, f"path '{path}' does not exist") from exc
    except OSError as exc:
        raise HttpError(500, f"error opening file '{path}': {exc.strerror}") from exc
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "is a directory" if stat.S_ISDIR(mode) else "is not a regular file"
        raise HttpError(400, f"path '{path}' {kind}")
    if os.readlink(f"/proc/self/fd/{fd}").startswith(f"/proc/{os.getpid()}/"):
        # What the kernel tells this process of itself is about the machine it was forked on.
        os.close(fd)
        raise HttpError(403, f"path '{path}' is the daemon's own")
    return fd


def _requested_range(request: web.Request, size: int, modified: int) -> ByteRange | None:
    unless = request.headers.get("If-Range")
    if unless is not None and parse_http_date(unless) != modified:
        return None
    try:
        return parse_range(request.headers.get("Range"), size)
    except UnsatisfiableRangeError as exc:
        raise HttpError(416, str(exc), {"Content-Range": f"bytes */{size}"}) from exc


async def _read(fd: int, part: ByteRange | None) -> AsyncIterator[bytes]:
    position = part.first if part else 0
    end = part.last + 1 if part else None
    while end is None or position < end:
        size = _CHUNK if end is None else min(_CHUNK, end - position)
        chunk = os.pread(fd, size, position)
        if not chunk:
            return
        position += len(chunk)
        yield chunk


async def _gzip(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    compressor = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP_WINDOW)
    async for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()


async def _send_unsized(
    request: web.Request, headers: dict[str, str], fd: int
) -> web.StreamResponse:
    """Files that say they are empty: most are, those of /proc are not."""
    first = os.read(fd, _CHUNK)
    if not first:
        return web.Response(headers=headers, body=b"")

    async def chunks() -> AsyncIterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            chunk = os.read(fd, _CHUNK)

    return await _send(request, 200, headers, None, _in_pieces(chunks()))


_Body = Callable[[web.StreamResponse], Awaitable[int]]
"""Sends a body behind the head of an answer; gives the number of bytes."""


def _in_pieces(chunks: AsyncIterator[bytes]) -> _Body:
    async def send(response: web.StreamResponse) -> int:
        sent = 0
        async for chunk in chunks:
            await response.write(chunk)
            sent += len(chunk)
        return sent

    return send


def _from_file(request: web.Request, fd: int, part: ByteRange) -> _Body:
    """Leaves it to the kernel to read the file and send it, where it can."""

    async def send(response: web.StreamResponse) -> int:
        if request.transport is None:
            raise ConnectionResetError("the client left")
        loop = asyncio.get_running_loop()
        try:
            with io.FileIO(fd, closefd=False) as file:
                return await loop.sendfile(
                    request.transport, file, part.first, part.size, fallback=False
                )
        except asyncio.SendfileNotAvailableError:  # nothing has been sent then
            return await _in_pieces(_read(fd, part))(response)

    return send


async def _send(
    request: web.Request, status: int, headers: dict[str, str], size: int | None, body: _Body
) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = size
    await response.prepare(request)
    complete = False
    try:
        complete = await body(response) == size or size is None
    finally:
        # The file got shorter, cannot be read, or the client left: cut the connection, so that no
        # one takes what was sent for the whole.
        if not complete and request.transport is not None:
            request.transport.abort()
    if complete:
        await response.write_eof()
    return response
