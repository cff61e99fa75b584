"""What the routes need of the process they run in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends, Path, Request

from sandgate.accounts import Caller
from sandgate.api.errors import ApiError
from sandgate.api.guard import CALLER
from sandgate.api.repetitions import Repetitions
from sandgate.api.responses import Identity
from sandgate.node.decisions import DecisionHub
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


AnyId = Annotated[
    str, Path(description="The sandbox's id.", json_schema_extra={"pattern": ID_PATTERN})
]


async def _caller(request: Request) -> Caller:
    return cast(Caller, getattr(request.state, CALLER))


async def _operator(request: Request) -> Caller:
    caller = await _caller(request)
    if not caller.is_operator:
        raise ApiError(403, "this is for the node's operator: use the key `sandgate env` prints")
    return caller


Served = Annotated[Services, Depends(_services)]
Calling = Annotated[Caller, Depends(_caller)]
"""Who makes the request."""
Operator = Annotated[Caller, Depends(_operator)]
"""The same, for what concerns the node as a whole: 403 for others."""


def checked_id(sandbox_id: str) -> str:
    """The id that the path says. Raises :class:`ApiError`."""
    parsed = parse_sandbox_id(sandbox_id)
    if parsed is None:
        raise ApiError(400, f"Invalid sandbox ID {sandbox_id[:100]!r}: it has a-z and 0-9 only")
    return parsed


async def _sandbox_id(sandbox_id: AnyId, served: Served, caller: Calling) -> str:
    parsed = checked_id(sandbox_id)
    # Before anything else is looked at: what is another's must look like what does not exist.
    served.node.require_owner(parsed, caller.owner)
    return parsed


SandboxId = Annotated[str, Depends(_sandbox_id)]
"""The id of a sandbox of the caller's; 404 for any other."""
