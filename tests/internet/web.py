"""HTTP/1.1 as the small internet's hosts speak it: every answer tells what the server saw."""

from __future__ import annotations

import asyncio
import itertools
import json
import mimetypes
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from internet.contacts import Journal

_PLAIN_STATUS = {"1.1.1.1": 301, "8.8.8.8": 302}
"""What `https://<address>/` answers on the real internet; E2B's own tests look at it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as read."""

    raw: bytes
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]

    def all(self, name: str) -> list[str]:
        """All values of a header, in order."""
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str:
        """The first value of a header, or nothing."""
        return next(iter(self.all(name)), "")


class WebServer:
    """Serves one host directory per published host name, and an echo of the request elsewhere."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._ids = itertools.count(1)
        self.published: dict[str, Path] = {}

    async def serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sni: str | None
    ) -> None:
        """Answer the requests of one connection until it ends."""
        source, server = (writer.get_extra_info(key) for key in ("peername", "sockname"))
        connection = next(self._ids)
        for index in itertools.count(1):
            request = await _read_request(reader)
            if request is None:
                return
            length = await _skip_body(request, reader)
            host = request.get("host")
            self._journal.add(
                "request",
                "tcp",
                source[0],
                server[0],
                server[1],
                host,
                method=request.method,
                target=request.target,
                sni=sni,
                connection=connection,
                raw=request.raw.decode("latin-1"),
            )
            seen = {
                "server": server[0],
                "port": server[1],
                "client": source[0],
                "host": host,
                "sni": sni,
                "method": request.method,
                "path": request.target,
                "headers": request.headers,
                "body_bytes": length,
                "connection": connection,
                "request": index,
            }
            keep = self._respond(request, seen, writer)
            await writer.drain()
            if not keep:
                return

    def _respond(
        self, request: Request, seen: dict[str, object], writer: asyncio.StreamWriter
    ) -> bool:
        path = unquote(urlsplit(request.target).path)
        host = request.get("host").split(":")[0].lower()
        kind = "application/json"
        status = _PLAIN_STATUS.get(host, 200)
        body = (json.dumps(seen) + "\n").encode()
        if host in self.published:
            status, kind, body = _static(self.published[host], path)
        elif path == "/generate_204":
            status, body = 204, b""
        elif path.startswith("/bytes/"):
            status, kind, body = 200, "application/octet-stream", b"x" * int(path[7:])
        close = path == "/close" or "close" in request.get("connection").lower()
        close = close or request.version == "HTTP/1.0"
        head = [f"HTTP/1.1 {status} -", "Server: small-internet"]
        if status != 204:
            head += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        head += [f"Connection: {'close' if close else 'keep-alive'}", "", ""]
        writer.write("\r\n".join(head).encode() + (b"" if request.method == "HEAD" else body))
        return not close


async def _read_request(reader: asyncio.StreamReader) -> Request | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    lines = raw.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3:
        return None
    pairs = [line.partition(":") for line in lines[1:] if line]
    headers = [(key.strip().lower(), value.strip()) for key, _, value in pairs]
    return Request(raw, words[0], words[1], words[2], headers)


async def _skip_body(request: Request, reader: asyncio.StreamReader) -> int:
    """Read past the body and return its length. Chunked wins over a length, as RFC 9112 says."""
    if "chunked" in request.get("transfer-encoding").lower():
        total = 0
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
            total += size
        while (await reader.readline()).strip():
            pass
        return total
    length = left = int(request.get("content-length") or 0)
    while left:
        piece = await reader.read(min(left, 1 << 16))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(piece)
    return length


def _static(root: Path, path: str) -> tuple[int, str, bytes]:
    file = (root / path.lstrip("/")).resolve()
    if file.is_dir():
        file = file / "index.html"
    if not file.is_relative_to(root.resolve()) or not file.is_file():
        return 404, "text/plain", b"not found\n"
    kind = mimetypes.guess_type(file.name, strict=False)[0] or "application/octet-stream"
    return 200, kind, file.read_bytes()
