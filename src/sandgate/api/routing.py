"""How the API's routers are made."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import APIRouter

from sandgate.api.errors import declared


def new_router(tag: str, statuses: Iterable[int] = ()) -> APIRouter:
    """A router, all of whose routes may answer with these error statuses."""
    # A body that does not say what it is is JSON as well.
    return APIRouter(tags=[tag], responses=declared(statuses), strict_content_type=False)
