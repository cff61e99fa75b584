"""Where the ingress asks for a paused sandbox when a request for it has come.

A question is five lines: sandbox, port, method, path with query, `X-Access-Token` (maybe empty).
The answer is one: `running <address>`, `denied`, `gone` or `failed`. Whether the request may pass
the sandbox's traffic token has been decided by then; envd's own token is checked here, since a
request that envd would refuse must not resume its sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from urllib.parse import parse_qsl, urlsplit

from sandgate.envd.auth import AccessToken, AuthError
from sandgate.ingress.routes import ENVD_PORT
from sandgate.node.errors import NodeError, SandboxEnding, SandboxNotFound
from sandgate.store import StoreError

_LONGEST_LINE = 16 << 10
_READ_SECONDS = 5.0
_FILE_METHODS = {"GET": "read", "HEAD": "read", "POST": "write"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Knock:
    """A request for a paused sandbox."""

    sandbox_id: str
    port: int
    method: str
    target: str
    """Path and query as the client sent them."""
    access_token: str

    def may_enter(self, token: str | None, now: float) -> bool:
        """Whether a sandbox whose envd has this token would take the request."""
        if self.port != ENVD_PORT:
            return True
        access = AccessToken(token)
        if access.matches(self.access_token):
            return True
        url = urlsplit(self.target)
        operation = _FILE_METHODS.get(self.method)
        if url.path != "/files" or operation is None:
            return False
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        try:
            access.check_signed(
                self.access_token or None, query, "read" if operation == "read" else "write", now
            )
        except AuthError:
            return False
        return True


class KnockDenied(Exception):
    """The request carries nothing that lets it in."""


Wake = Callable[[Knock], Awaitable[IPv4Address]]
"""Raises KnockDenied, or a NodeError."""


async def serve_doorbell(listener: socket.socket, wake: Wake) -> asyncio.Server:
    """Answer knocks until the server is closed."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                writer.write(f"{await _answer(reader, wake)}\n".encode())
                await writer.drain()
            finally:
                writer.close()

    return await asyncio.start_unix_server(handle, sock=listener, limit=_LONGEST_LINE)


async def _answer(reader: asyncio.StreamReader, wake: Wake) -> str:
    try:
        async with asyncio.timeout(_READ_SECONDS):
            lines = [(await reader.readuntil()).decode("latin-1")[:-1] for _ in range(5)]
        knock = Knock(lines[0], int(lines[1]), *lines[2:])
        return f"running {await wake(knock)}"
    except KnockDenied:
        return "denied"
    except (SandboxNotFound, SandboxEnding):
        return "gone"
    except (NodeError, StoreError) as error:
        _log.warning("a request could not resume its sandbox: %s", error)
    except (ValueError, TimeoutError, EOFError, asyncio.LimitOverrunError) as error:
        _log.warning("the ingress asks in an unknown way: %s", type(error).__name__)
    return "failed"
