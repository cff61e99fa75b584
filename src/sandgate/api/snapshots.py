"""Routes of snapshots and forks (wire contract, 2.2)."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import Query, Response

from sandgate.api.dependencies import Calling, SandboxId, Served
from sandgate.api.errors import ApiError, declared, from_node_error
from sandgate.api.listing import BadQuery, next_token, parse_token
from sandgate.api.paths import TEMPLATE
from sandgate.api.requests import ForkBody, SnapshotBody
from sandgate.api.responses import ForkAnswer, ForkError, SnapshotAnswer
from sandgate.api.routing import new_router
from sandgate.node.errors import NodeError
from sandgate.store import SnapshotRecord

PAGE = 100

router = new_router("snapshots", (400, 401, 408, 413, 500, 503))

_found = declared((404,))
_copied = declared((404, 429, 507))


@router.post("/sandboxes/{sandbox_id}/snapshots", status_code=201, responses=_copied)
async def snapshot(
    sandbox_id: SandboxId, served: Served, body: SnapshotBody | None = None
) -> SnapshotAnswer:
    """Keep a sandbox's file system; sandboxes are made of it by its id as the template."""
    name = None if body is None else body.name
    return _answer(await served.node.snapshot(sandbox_id, name))


@router.get("/snapshots")
async def list_snapshots(
    served: Served,
    caller: Calling,
    response: Response,
    sandbox_id: Annotated[str | None, Query(alias="sandboxID")] = None,
    name: str | None = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    next_page: Annotated[str | None, Query(alias="nextToken")] = None,
) -> list[SnapshotAnswer]:
    """List snapshots, newest first, a page at a time."""
    try:
        after = parse_token(next_page)
    except BadQuery as error:
        raise ApiError(400, str(error)) from error
    records = served.node.find_snapshots(
        owner=caller.owner, sandbox_id=sandbox_id, name=name, after=after, limit=limit + 1
    )
    if len(records) > limit:
        records = records[:limit]
        last = records[-1]
        response.headers["X-Next-Token"] = next_token(last.created_at, last.snapshot_id)
    return [_answer(record) for record in records]


@router.delete(f"/templates/{{snapshot_id:{TEMPLATE}}}", status_code=204, responses=_found)
async def delete_snapshot(snapshot_id: str, served: Served, caller: Calling) -> None:
    """Delete a snapshot. Sandboxes made of it stay. Templates cannot be deleted this way."""
    await served.node.snapshots.delete(snapshot_id, caller.owner)


@router.post(
    "/sandboxes/{sandbox_id}/fork",
    status_code=201,
    responses=_copied,
    response_model_exclude_none=True,
)
async def fork(
    sandbox_id: SandboxId, served: Served, caller: Calling, body: ForkBody | None = None
) -> list[ForkAnswer]:
    """Start sandboxes like this one on copies of its file system. Memory is not copied."""
    body = body or ForkBody()
    outcomes = await served.node.fork(sandbox_id, caller, body.timeout, body.count)
    return [
        ForkAnswer(error=_error(item))
        if isinstance(item, NodeError)
        else ForkAnswer(sandbox=served.identity.sandbox(item))
        for item in outcomes
    ]


def _error(error: NodeError) -> ForkError:
    return ForkError.model_validate(json.loads(bytes(from_node_error(error).body)))


def _answer(record: SnapshotRecord) -> SnapshotAnswer:
    names = [] if record.name is None else [record.name]
    return SnapshotAnswer(snapshot_id=record.snapshot_id, names=names)
