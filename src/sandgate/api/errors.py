"""One shape for every error: `{"code": <status>, "message": <text>}`.

The SDKs read `code` from the body, some of them instead of the status (wire contract, section 2).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route

from sandgate.api.fields import NOT_OFFERED
from sandgate.node import errors as node
from sandgate.store import StoreError

_log = logging.getLogger(__name__)

_SECRET_FIELDS = frozenset({"envVars", "metadata"})
"""Fields whose values are not repeated in an error."""
_LONGEST_VALUE = 100

_RETRY = {"Should-Retry": "true", "Retry-After": "1"}
_NO_RETRY = {"Should-Retry": "false"}


class Error(BaseModel):
    """Every answer that is not a success."""

    code: int
    """The HTTP status."""
    message: str
    error_code: str | None = None
    """What is wrong, for programs; with a few errors only."""


class ApiError(Exception):
    """Answers `status` with `message`, which is meant for the user."""

    def __init__(
        self,
        status: int,
        message: str,
        headers: Mapping[str, str] | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers
        self.error_code = error_code


NODE_ERRORS: Mapping[type[node.NodeError], tuple[int, Mapping[str, str]]] = {
    node.SandboxNotFound: (404, {}),
    node.SandboxEnding: (409, {}),
    node.AlreadyPaused: (409, {}),
    node.TemplateNotFound: (404, {}),
    node.SnapshotNotFound: (404, {}),
    node.InvalidRequest: (400, {}),
    node.NoSpace: (507, _NO_RETRY),
    node.NotReady: (503, _RETRY),
    node.NotApplied: (500, _NO_RETRY),
    node.EndPending: (503, _RETRY),
}
"""Status and headers of what goes wrong in the node. `Should-Retry`: wire contract, 1.6."""


def error_response(
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    error_code: str | None = None,
) -> JSONResponse:
    """An answer in the shape of all errors."""
    # What a client sent is quoted, and may be text that cannot be encoded.
    message = message.encode(errors="replace").decode()
    body = {"code": status, "message": message}
    if error_code is not None:
        body["error_code"] = error_code
    return JSONResponse(body, status, headers)


def from_node_error(error: node.NodeError) -> JSONResponse:
    """The answer to something that went wrong in the node."""
    if isinstance(error, (node.StartFailed, node.ChangeFailed)):
        # Nothing was left behind, so a repetition by the SDK makes no second sandbox.
        if error.retryable:
            return error_response(503, str(error), _RETRY)
        return error_response(500, str(error), _NO_RETRY)
    if isinstance(error, node.LimitReached):
        return error_response(429, str(error), _limit_headers(error))
    status, headers = NODE_ERRORS[type(error)]
    return error_response(status, str(error), headers)


def _limit_headers(error: node.LimitReached) -> dict[str, str]:
    headers = {"Should-Retry": "true" if error.repeat else "false"}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    return headers


def declared(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of these error statuses."""
    # Not as a model: FastAPI would prepare to validate it, for each status of each route.
    schema = {"$ref": f"#/components/schemas/{Error.__name__}"}
    return {status: {"content": {"application/json": {"schema": schema}}} for status in statuses}


def describe(errors: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with a request, from pydantic's list: field, value and remedy."""
    return "; ".join(_describe(error) for error in errors[:3])


def _describe(error: Mapping[str, Any]) -> str:
    location = error["loc"]
    kind, problem, value = error["type"], str(error["msg"]), error.get("input")
    path = ".".join(str(part) for part in location[1:])
    if kind == "json_invalid":
        return f"the body is not valid JSON: {error['ctx']['error']} at character {path}"
    if kind in ("sandgate", NOT_OFFERED):
        return problem
    problem = problem[0].lower() + problem[1:]
    if not path:
        return f"invalid {location[0]}: {problem}; send a JSON object"
    if kind == "missing":
        return f"missing field '{path}': it is required"
    if kind == "extra_forbidden":
        return f"unknown field '{path}': it is not supported; leave it out"
    if _SECRET_FIELDS.intersection(location):
        return f"invalid value for '{path}': {problem}"
    return f"invalid value {_shortened(repr(value))} for '{path}': {problem}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


def install(app: FastAPI, routes: Iterable[BaseRoute]) -> None:
    """Make `app`, which has or will have `routes`, answer every error in the one shape."""
    paths = [
        (route.path_regex, route.methods or ()) for route in routes if isinstance(route, Route)
    ]

    def allowed(path: str) -> str:
        # Starlette itself names the methods of the first route that has the path.
        methods: set[str] = set()
        for regex, offered in paths:
            if regex.match(path):
                methods.update(offered)
        return ", ".join(sorted(methods))

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = error.errors()
        only_missing = all(item["type"] == NOT_OFFERED for item in errors)
        return error_response(501 if only_missing else 400, describe(errors))

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no {_shortened(request.url.path)} here"
        elif error.status_code == 405:
            message = f"{request.method} is not possible on {_shortened(request.url.path)}"
            return error_response(405, message, {"Allow": allowed(request.scope["path"])})
        return error_response(error.status_code, message, error.headers)

    async def on_api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_response(error.status, error.message, error.headers, error.error_code)

    async def on_node(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, node.NodeError)
        response = from_node_error(error)
        if response.status_code >= 500:
            _log.warning("answered %d: %s", response.status_code, error)
        return response

    async def on_store(_: Request, error: Exception) -> JSONResponse:
        _log.error("%s", error)
        return error_response(500, "the node's database does not work; see the node's log")

    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ApiError, on_api)
    app.add_exception_handler(node.NodeError, on_node)
    app.add_exception_handler(StoreError, on_store)
