"""Stands before the routes: lets known keys in, bounds bodies, hides what goes wrong inside.

A plain ASGI middleware, so that a request without a key is refused before its body is read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandgate.accounts import KeyRejected
from sandgate.accounts.keyring import KeyRing
from sandgate.api.errors import error_response

MAX_BODY = 8 << 20
"""Bytes; room for two lists of 10,000 names of full length."""
BODY_SECONDS = 30.0
"""Longest time for a body to arrive."""
PUBLIC = frozenset({"/health", "/openapi.json"})
"""Paths that need no key."""
METRICS = "/metrics"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
"""Those that pages of other origins may use."""
CALLER = "caller"
"""Where, in the state of a request, it stands who makes it (:class:`sandgate.accounts.Caller`)."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Guard:
    """Wraps `app`."""

    app: ASGIApp
    keys: Callable[[], KeyRing]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def tell(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                # Answers hold tokens.
                MutableHeaders(scope=message).setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            if scope["method"] == "OPTIONS":
                # Preflight requests of browsers were answered before; this is everyone else's.
                await Response(status_code=204)(scope, receive, tell)
                return
            if scope["path"] not in PUBLIC:
                caller = self.keys().identify(_key(scope))
                scope["state"] = {**scope.get("state", {}), CALLER: caller}
            await self.app(scope, _bounded(scope, receive), tell)
        except KeyRejected as error:
            await error_response(401, str(error))(scope, receive, tell)
        except Exception:  # the last resort: nothing of the inside may reach the client
            number = secrets.token_hex(4)
            _log.exception("error %s in %s %s", number, scope["method"], scope["path"])
            if started:
                raise
            message = f"internal error {number}; the node's log has the details"
            await error_response(500, message, {"Should-Retry": "false"})(scope, receive, tell)


def _key(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    key = headers.get("x-api-key")
    if key is None and scope["path"] == METRICS:
        # The one way in which every version of Prometheus can send a key.
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            key = token.strip()
    return key


def _bounded(scope: Scope, receive: Receive) -> Receive:
    declared = Headers(scope=scope).get("content-length", "0")
    # FastAPI lets no other exception than this one out of reading a body. The rest of the body
    # is not read, so the connection cannot be used again.
    close = {"Connection": "close"}
    too_large = HTTPException(
        413, f"the body is too large: at most {MAX_BODY} bytes are read", close
    )
    received = 0
    complete = False
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def bounded() -> Message:
        nonlocal received, complete
        if complete:
            # The app waits for the client to go away, which may take as long as it likes.
            return await receive()
        if declared.isdigit() and int(declared) > MAX_BODY:
            raise too_large
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "the body did not arrive in time", close) from None
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise too_large
        complete = not message.get("more_body", False)
        return message

    return bounded
