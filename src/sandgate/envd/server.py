"""The HTTP server: routes, access control, CORS, the shape of errors."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Middleware

from sandgate.envd.auth import UNAUTHORIZED
from sandgate.envd.connect import Code, ConnectError
from sandgate.envd.files import Downloads, FileAccess, HttpError
from sandgate.envd.filesystem_service import FilesystemService
from sandgate.envd.identity import Identity
from sandgate.envd.metrics import Gauge, Metrics
from sandgate.envd.process_service import ProcessService
from sandgate.envd.processes import ProcessTable
from sandgate.envd.rpc import Handler, Rpc, Streams
from sandgate.envd.uploads import Uploads
from sandgate.envd.users import UserDatabase
from sandgate.envd.watch import WatchTable

# Longer than any idle time that the way to a client allows, so that it is never this end that
# closes a connection on which a request is just being sent.
_IDLE = 2 * 3600.0
_MAX_LINE = 64 << 10
_MAX_FIELD = 16 << 10
_OPEN_ROUTES = {("GET", "/health"), ("GET", "/files"), ("POST", "/files")}
"""Checked by themselves, or of no consequence."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Daemon:
    """The parts of a running daemon."""

    identity: Identity
    users: UserDatabase
    processes: ProcessTable
    watches: WatchTable
    gauge: Gauge
    streams: Streams

    def application(self) -> web.Application:
        """The routes over these parts."""
        app = web.Application(middlewares=[_gate(self.identity)])
        app.on_response_prepare.append(_complete_headers)
        self._add_process_service(app.router)
        self._add_filesystem_service(app.router)
        self._add_http(app.router)
        return app

    def _add_process_service(self, router: web.UrlDispatcher) -> None:
        rpc = Rpc(self.identity, self.users, self.streams)
        service = ProcessService(self.processes)
        methods = {
            "List": rpc.unary(service.list_),
            "Start": rpc.server_stream(service.start),
            "Connect": rpc.server_stream(service.connect),
            "Update": rpc.unary(service.update),
            "StreamInput": rpc.client_stream(service.stream_input),
            "SendInput": rpc.unary(service.send_input),
            "SendSignal": rpc.unary(service.send_signal),
            "CloseStdin": rpc.unary(service.close_stdin),
        }
        _add_service(router, "process.Process", methods)

    def _add_filesystem_service(self, router: web.UrlDispatcher) -> None:
        rpc = Rpc(self.identity, self.users, self.streams)
        service = FilesystemService(self.watches)
        methods = {
            "Stat": rpc.unary(service.stat),
            "MakeDir": rpc.unary(service.make_dir),
            "Move": rpc.unary(service.move),
            "ListDir": rpc.unary(service.list_dir),
            "Remove": rpc.unary(service.remove),
            "WatchDir": rpc.server_stream(service.watch_dir),
            "CreateWatcher": rpc.unary(service.create_watcher),
            "GetWatcherEvents": rpc.unary(service.get_watcher_events),
            "RemoveWatcher": rpc.unary(service.remove_watcher),
        }
        _add_service(router, "filesystem.Filesystem", methods)

    def _add_http(self, router: web.UrlDispatcher) -> None:
        access = FileAccess(self.identity, self.users)
        uploads = Uploads(access)
        metrics = Metrics(self.gauge)

        async def health(request: web.Request) -> web.StreamResponse:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})

        async def envs(request: web.Request) -> web.StreamResponse:
            body = self.identity.config.sandbox_env()
            return web.json_response(body, headers={"Cache-Control": "no-store"})

        async def read_metrics(request: web.Request) -> web.StreamResponse:
            return web.json_response(metrics.read(), headers={"Cache-Control": "no-store"})

        router.add_get("/health", health, allow_head=False)
        router.add_get("/envs", envs, allow_head=False)
        router.add_get("/metrics", read_metrics, allow_head=False)
        router.add_get("/files", Downloads(access).get, allow_head=False)
        router.add_post("/files", uploads.post)
        router.add_post("/files/compose", uploads.compose)


def _add_service(router: web.UrlDispatcher, service: str, methods: dict[str, Handler]) -> None:
    for name, handler in methods.items():
        router.add_post(f"/{service}/{name}", handler)

    async def unknown(request: web.Request) -> web.StreamResponse:
        text = f"{request.path} is not a method of {service}"
        error = ConnectError(Code.UNIMPLEMENTED, text)
        return web.json_response(error.to_json(), status=error.code.http_status)

    router.add_post(f"/{service}/{{method}}", unknown)


def _gate(identity: Identity) -> Middleware:
    """Lets in who has the token, and turns what goes wrong into JSON."""

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.method == "OPTIONS":
            return web.Response(status=204)
        try:
            open_to_all = (request.method, request.path) in _OPEN_ROUTES
            given = request.headers.get("X-Access-Token")
            if not open_to_all and not identity.token.matches(given):
                return _error(401, UNAUTHORIZED)
            return await handler(request)
        except HttpError as exc:
            return _error(exc.status, exc.message, exc.headers)
        except web.HTTPException as exc:
            return _error(exc.status, f"{request.method} {request.path}: {exc.reason}")
        except ConnectionError:
            raise
        except Exception as exc:  # the boundary: every failure becomes an answer
            _log.exception("unexpected failure of a request")
            return _error(500, f"internal error: {type(exc).__name__}")

    return handle


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = json.dumps({"code": status, "message": message}).encode()
    return web.Response(status=status, body=body, headers=headers, content_type="application/json")


async def _complete_headers(request: web.Request, response: web.StreamResponse) -> None:
    headers = response.headers
    headers.popall("Server", None)
    if "Origin" not in request.headers:
        return
    headers["Access-Control-Allow-Origin"] = "*"
    headers["Access-Control-Expose-Headers"] = "*"
    if request.method == "OPTIONS":
        headers["Access-Control-Allow-Methods"] = "GET, HEAD, POST, PUT, PATCH, DELETE"
        asked = request.headers.get("Access-Control-Request-Headers")
        headers["Access-Control-Allow-Headers"] = asked or "*"
        headers["Access-Control-Max-Age"] = "7200"


def runner(daemon: Daemon) -> web.AppRunner:
    """The daemon's application, ready to be put on sockets. Sets no signal handlers."""
    return web.AppRunner(
        daemon.application(),
        handle_signals=False,
        access_log=None,
        keepalive_timeout=_IDLE,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_FIELD,
        # Compressed bodies are decompressed where they are used, in bounded pieces.
        auto_decompress=False,
        # A stream whose client has left must not be kept.
        handler_cancellation=True,
    )
