"""Connect calls over HTTP: from a request to a handler's message, and back."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from sandgate.envd.auth import basic_username
from sandgate.envd.chunks import Chunks, Filler
from sandgate.envd.config import EnvdConfig
from sandgate.envd.connect import (
    Code,
    ConnectError,
    FrameDecoder,
    Message,
    encode_end,
    encode_frame,
    invalid,
)
from sandgate.envd.identity import Identity
from sandgate.envd.users import User, UserDatabase

_MAX_MESSAGE = 32 << 20
_DEFAULT_KEEPALIVE = 90.0
_MAX_TIMEOUT_DIGITS = 10  # as the Connect protocol says

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """What a handler sees of the request beside its message."""

    headers: Mapping[str, str]
    config: EnvdConfig
    users: UserDatabase

    def user(self) -> User:
        """The user that the call names by Basic authentication, else the default one.

        :raises ConnectError: `unauthenticated` if there is no such user.
        """
        name = basic_username(self.headers.get("Authorization"))
        kind = "username" if name is not None else "default user"
        name = self.config.default_user if name is None else name
        user = self.users.find(name)
        if user is None:
            raise ConnectError(Code.UNAUTHENTICATED, f"invalid {kind}: '{name}'")
        return user

    def timeout(self) -> float | None:
        """Seconds that the client gives the call; None for no limit.

        :raises ConnectError: `invalid_argument` if the header is no number.
        """
        text = self.headers.get("Connect-Timeout-Ms", "").strip()
        if not text:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_TIMEOUT_DIGITS):
            raise invalid(
                f"Connect-Timeout-Ms must be milliseconds in up to 10 digits, not {text!r:.40}"
            )
        return int(text) / 1000 or None

    def keepalive(self) -> float:
        """Seconds of silence after which a stream sends a sign of life."""
        text = self.headers.get("Keepalive-Ping-Interval", "").strip()
        if text.isascii() and text.isdigit() and len(text) <= 6 and int(text) > 0:
            return float(text)
        return _DEFAULT_KEEPALIVE


class _Unframed(web.StreamResponse):
    """An answer whose body the handler itself puts into chunks."""

    _length_check = False  # as aiohttp's own WebSocketResponse
    # With the first bytes of the body, as aiohttp's own Response: each segment wakes the proxy and
    # the client.
    _send_headers_immediately = False


class Reply:
    """The open end of a stream that goes to the client."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._chunks = Chunks()
        self._held = b""
        self._response = _Unframed(
            headers={
                "Content-Type": "application/connect+json",
                "Transfer-Encoding": "chunked",
            }
        )

    def fill_with(self, filler: Filler) -> None:
        """The stream may become long, and these messages mean nothing in it."""
        self._chunks.filler = filler

    async def send(self, frames: bytes) -> None:
        """Send encoded frames, waiting while the client does not read.

        :raises ConnectionError: if the client has gone.
        """
        await self._begin()
        await self._response.write(self._chunks.wrap(frames))

    def hold(self, frames: bytes) -> None:
        """Send encoded frames with the last one, which follows at once."""
        self._held = frames

    async def end(self, error: ConnectError | None) -> web.StreamResponse:
        """Send the last frame, if the client is still there."""
        try:
            await self._begin()
            for piece in self._chunks.end(self._held + encode_end(error)):
                await self._response.write(piece)
            await self._response.write_eof()
        except ConnectionError:
            _log.debug("the client left before the end of its stream")
        return self._response

    async def _begin(self) -> None:
        # Not before there is something to say: a proxy that sees an answer before it has passed
        # on the request's body may take the request for finished.
        if not self._response.prepared:
            await self._response.prepare(self._request)


Unary = Callable[[Call, Message], Awaitable[dict[str, Any]]]
ServerStream = Callable[[Call, Message, Reply], Awaitable[None]]
ClientStream = Callable[[Call, AsyncIterator[Message]], Awaitable[dict[str, Any]]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Streams:
    """The streams that are open now, to be able to end them all."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Task[Any], ConnectError | None] = {}
        """With the error that each is to end with, once that is so."""

    def end_all(self, code: Code, message: str) -> None:
        """End every stream with this error."""
        for task in self._open:
            self._open[task] = ConnectError(code, message)
            task.cancel()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The calling task serves a stream. Raises the error that the stream is ended with."""
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = None
        try:
            yield
        except asyncio.CancelledError:
            error = self._open[task]
            if error is None:
                raise
            task.uncancel()
            raise error from None
        finally:
            del self._open[task]


@dataclass(frozen=True, slots=True)
class Rpc:
    """Makes HTTP handlers out of RPC handlers."""

    identity: Identity
    users: UserDatabase
    streams: Streams

    def unary(self, handler: Unary) -> Handler:
        """One JSON message in, one out. Errors are an HTTP status and a JSON object."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                call = Call(request.headers, self.identity.config, self.users)
                async with asyncio.timeout(call.timeout()):
                    message = Message.parse(await _read_body(request))
                    body = await handler(call, message)
                return _json(200, body)
            except Exception as exc:  # the boundary: every failure becomes an answer
                error = _as_connect_error(exc)
                return _json(error.code.http_status, error.to_json())

        return handle

    def server_stream(self, handler: ServerStream) -> Handler:
        """One message in, many out. Errors are the last frame of a 200."""

        async def handle(request: web.Request) -> web.StreamResponse:
            async def serve(call: Call, reply: Reply) -> None:
                await handler(call, await _message(request), reply)

            return await self._stream(request, serve)

        return handle

    def client_stream(self, handler: ClientStream) -> Handler:
        """Many messages in, as they arrive, and one out."""

        async def handle(request: web.Request) -> web.StreamResponse:
            async def serve(call: Call, reply: Reply) -> None:
                body = await handler(call, _messages(request))
                await reply.send(encode_frame(json.dumps(body).encode()))

            return await self._stream(request, serve)

        return handle

    async def _stream(
        self, request: web.Request, serve: Callable[[Call, Reply], Awaitable[None]]
    ) -> web.StreamResponse:
        reply = Reply(request)
        try:
            call = Call(request.headers, self.identity.config, self.users)
            with self.streams.opened():
                async with asyncio.timeout(call.timeout()):
                    await serve(call, reply)
        except ConnectionError:
            return await reply.end(None)
        except Exception as exc:  # the boundary: every failure becomes an end frame
            return await reply.end(_as_connect_error(exc))
        return await reply.end(None)


def _json(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type="application/json"
    )


async def _read_body(request: web.Request) -> bytes:
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ConnectError(
            Code.UNIMPLEMENTED, f"unsupported Content-Encoding '{encoding}'; send identity"
        )
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_MESSAGE:
            message = f"the message is longer than {_MAX_MESSAGE} bytes; send less at once"
            raise ConnectError(Code.RESOURCE_EXHAUSTED, message)
    return bytes(body)


async def _message(request: web.Request) -> Message:
    """The first message; what follows it is not read."""
    decoder = FrameDecoder(_MAX_MESSAGE)
    # Not by `_messages`: a generator that is left in the middle costs a task that ends it.
    async for chunk in request.content.iter_any():
        for frame in decoder.feed(chunk):
            return Message.parse(frame.payload)
    raise invalid(
        "the request ends in the middle of a message"
        if decoder.partial
        else "the request has no message"
    )


async def _messages(request: web.Request) -> AsyncIterator[Message]:
    decoder = FrameDecoder(_MAX_MESSAGE)
    async for chunk in request.content.iter_any():
        for frame in decoder.feed(chunk):
            yield Message.parse(frame.payload)
    if decoder.partial:
        raise invalid("the request ends in the middle of a message")


def _as_connect_error(exc: Exception) -> ConnectError:
    if isinstance(exc, ConnectError):
        return exc
    if isinstance(exc, TimeoutError):
        return ConnectError(Code.DEADLINE_EXCEEDED, "context deadline exceeded")
    if isinstance(exc, OSError) and exc.errno is not None:
        return ConnectError(Code.INTERNAL, str(exc))
    _log.exception("unexpected failure of a call")
    return ConnectError(Code.INTERNAL, f"internal error: {type(exc).__name__}")
