"""Has the API answer a few requests to nobody, so that all that is imported late is imported now.

Afterwards the process may run as a user who cannot read the program's files.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Scope

REQUESTS = (
    ("GET", "/openapi.json", b""),
    ("GET", "/health", b""),
    ("GET", "/metrics", b""),
    ("GET", "/nothing", b""),
    ("GET", "/v2/sandboxes", b""),
    ("POST", "/v2/sandboxes", b"{"),
    ("POST", "/v2/sandboxes", b'{"templateID":1}'),
    ("POST", "/v2/sandboxes", b'{"templateID":"rehearsal"}'),
    ("OPTIONS", "/v2/sandboxes", b""),
)


async def rehearse(app: ASGIApp, key: str) -> list[int]:
    """Make :data:`REQUESTS` with `key`; returns the statuses. `app` must not have started yet."""
    return [await _call(app, method, path, body, key) for method, path, body in REQUESTS]


async def _call(app: ASGIApp, method: str, path: str, body: bytes, key: str) -> int:
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    headers = {
        "content-type": "application/json",
        "x-api-key": key,
        "origin": "https://example.com",
        "access-control-request-method": "POST",
    }
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": None,
    }
    await app(scope, receive, send)
    return status
