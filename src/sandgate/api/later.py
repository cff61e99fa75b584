"""Routes of E2B's API that Sandgate has not got yet: 501, in JSON, saying so."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from sandgate.api.errors import ApiError
from sandgate.api.paths import TEMPLATE
from sandgate.api.routing import new_router

NOT_YET = (
    ("GET", "/templates", "the template API"),
    ("POST", "/templates", "template builds"),
    ("GET", f"/templates/{{rest:{TEMPLATE}}}", "the template API"),
    ("POST", f"/templates/{{rest:{TEMPLATE}}}", "template builds"),
    ("PATCH", f"/templates/{{rest:{TEMPLATE}}}", "the template API"),
    ("DELETE", "/templates/tags", "the template API"),
    ("GET", "/v2/templates", "the template API"),
    ("POST", "/v2/templates", "template builds"),
    ("PATCH", "/v2/templates/{rest:path}", "the template API"),
    ("POST", "/v2/templates/{rest:path}", "template builds"),
    ("POST", "/v3/templates", "template builds"),
    ("GET", "/default-templates", "the template API"),
    ("GET", "/volumes", "volumes"),
    ("POST", "/volumes", "volumes"),
    ("GET", "/volumes/{rest:path}", "volumes"),
    ("DELETE", "/volumes/{rest:path}", "volumes"),
    ("GET", "/volumecontent/{rest:path}", "volumes"),
    ("POST", "/volumecontent/{rest:path}", "volumes"),
    ("PUT", "/volumecontent/{rest:path}", "volumes"),
    ("PATCH", "/volumecontent/{rest:path}", "volumes"),
    ("DELETE", "/volumecontent/{rest:path}", "volumes"),
    ("GET", "/secrets", "secrets"),
    ("POST", "/secrets", "secrets"),
    ("GET", "/secrets/{rest:path}", "secrets"),
    ("POST", "/secrets/{rest:path}", "secrets"),
    ("DELETE", "/secrets/{rest:path}", "secrets"),
    ("GET", "/events/{rest:path}", "lifecycle events"),
    ("POST", "/events/{rest:path}", "webhooks"),
    ("PATCH", "/events/{rest:path}", "webhooks"),
    ("DELETE", "/events/{rest:path}", "webhooks"),
)
"""Method, path and what it would be (wire contract, 2.2)."""


def routes() -> APIRouter:
    """All of :data:`NOT_YET`."""
    router = new_router("not offered yet", (401, 404, 501))
    for method, path, what in NOT_YET:
        router.add_api_route(
            path, _refusal(what), methods=[method], status_code=501, summary=f"Not yet: {what}"
        )
    return router


def _refusal(what: str) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise ApiError(501, f"Sandgate does not offer {what} yet")

    return refuse
