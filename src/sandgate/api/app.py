"""Puts the API together."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.cors import CORSMiddleware

from sandgate.accounts.keyring import KeyRing
from sandgate.api import (
    decisions,
    errors,
    health,
    later,
    lifecycle,
    metrics,
    observation,
    sandboxes,
    snapshots,
    templates,
)
from sandgate.api.dependencies import Services
from sandgate.api.guard import METHODS, PUBLIC, Guard

_VERSION = "1"
_INVALID = "HTTPValidationError"
_PATH_PART = re.compile(r"\{(\w+)\}")


class Api(FastAPI):
    """FastAPI whose OpenAPI document says what is true of this API."""

    def answer_for(self, services: Services, keys: KeyRing) -> None:
        """Answer for this node from now on, to those who have one of `keys`."""
        self.state.services = services
        self.state.keys = keys

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _document(self)
        return self.openapi_schema


def create_app() -> Api:
    """The API of the node that :meth:`Api.answer_for` says."""
    # Fixed paths come before those of the next ones that would match them too, and what is asked
    # for most comes early: paths are compared one by one.
    routers = (
        observation.router,
        sandboxes.router,
        lifecycle.router,
        templates.router,
        later.routes(),
        snapshots.router,
        decisions.router,
        metrics.router,
        health.router,
    )
    app = Api(
        title="Sandgate",
        version=_VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Not by `include_router`: FastAPI would look for the route in each router, and twice.
        routes=[route for router in routers for route in router.routes],
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    errors.install(app, app.routes)
    app.add_middleware(Guard, keys=lambda: app.state.keys)
    # Last, hence outermost: a browser must be able to read errors as well.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=["X-Next-Token", "Should-Retry", "Retry-After"],
        max_age=86_400,
    )
    return app


def _declare_path(path: str, operation: dict[str, Any]) -> None:
    """Add the parts of the path that no function of ours takes."""
    parameters = operation.setdefault("parameters", [])
    known = {item["name"] for item in parameters if item["in"] == "path"}
    parameters += [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PATH_PART.findall(path)
        if name not in known
    ]


def _document(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    components = document["components"]
    # FastAPI declares its own answer to invalid requests, which here are 400.
    for name in (_INVALID, "ValidationError"):
        components["schemas"].pop(name, None)
    components["schemas"][errors.Error.__name__] = errors.Error.model_json_schema()
    components["securitySchemes"] = {
        "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-KEY"}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _declare_path(path, operation)
            if _INVALID in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if path not in PUBLIC:
                operation["security"] = [{"ApiKey": []}]
    return document
