"""What the API says of templates."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path
from pydantic import BaseModel, Field

from sandgate.api.dependencies import Served
from sandgate.api.routing import new_router

router = new_router("templates", (400, 401, 404, 408, 413, 500, 503))


class AliasAnswer(BaseModel):
    """A template that exists (wire contract, 2.2)."""

    template_id: str = Field(alias="templateID")
    public: bool


@router.get("/templates/aliases/{alias:path}")
async def alias(
    alias: Annotated[str, Path(description="A template's name or alias.")], served: Served
) -> AliasAnswer:
    """Whether there is a template of this name: `exists` of the SDKs. 404: no."""
    name = served.node.template(alias)
    return AliasAnswer(templateID=name, public=True)
