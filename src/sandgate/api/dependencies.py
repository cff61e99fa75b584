"""What the routes need of the process they run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from sandgate.api.errors import ApiError
from sandgate.api.repetitions import Repetitions
from sandgate.api.responses import Identity
from sandgate.decisions.hub import DecisionHub
from sandgate.node.identifiers import ID_PATTERN, parse_sandbox_id
from sandgate.node.node import Node


@dataclass(frozen=True, slots=True)
class Services:
    """The node, its decision log, and how its answers name it."""

    node: Node
    decisions: DecisionHub
    repetitions: Repetitions
    identity: Identity
    default_timeout: int
    """Seconds a sandbox lives unless its creator says (v2)."""


async def _services(request: Request) -> Services:
    return cast(Services, request.app.state.services)


_Id = Annotated[
    str, Path(description="The sandbox's id.", json_schema_extra={"pattern": ID_PATTERN})
]


async def _sandbox_id(sandbox_id: _Id) -> str:
    parsed = parse_sandbox_id(sandbox_id)
    if parsed is None:
        raise ApiError(400, f"Invalid sandbox ID {sandbox_id[:100]!r}: it has a-z and 0-9 only")
    return parsed


Served = Annotated[Services, Depends(_services)]
SandboxId = Annotated[str, Depends(_sandbox_id)]
