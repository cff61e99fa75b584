"""The routes of sandboxes."""

from __future__ import annotations

from typing import Annotated

from fastapi import Header, Query, Response

from sandgate.accounts import Caller
from sandgate.api.dependencies import Calling, SandboxId, Served
from sandgate.api.errors import ApiError, declared
from sandgate.api.listing import (
    BadQuery,
    next_token,
    parse_metadata,
    parse_moment,
    parse_states,
    parse_token,
)
from sandgate.api.repetitions import KEY_PATTERN
from sandgate.api.requests import (
    CreateBody,
    CreateBodyV1,
    NetworkModeBody,
    NetworkUpdateBody,
    RefreshBody,
    TimeoutBody,
    created_network,
    network_config,
)
from sandgate.api.responses import (
    ListedSandbox,
    NetworkExplanation,
    SandboxAnswer,
    SandboxDetail,
)
from sandgate.api.routing import new_router
from sandgate.node.errors import TemplateNotFound
from sandgate.node.sandbox import CreateRequest
from sandgate.policy import Mode
from sandgate.store import ListQuery

PAGE = 100
"""Most sandboxes of a page, and how many there are unless the client says."""

_PUBLIC_NEEDS_SECURE = (
    "You cannot create a sandbox without public access unless you enable secure envd access "
    "via 'secure' flag."
)
_PAGED = {"X-Next-Token": {"description": "Given if there is more.", "schema": {"type": "string"}}}

router = new_router("sandboxes", (400, 401, 408, 413, 500, 503))

_found = declared((404,))
_changed = declared((404, 409))
_started = declared((404, 422, 429, 501, 507))
RepetitionKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=KEY_PATTERN,
        description="Repeating a request with the same key within a day makes no second sandbox.",
    ),
]


@router.post("/v2/sandboxes", status_code=201, responses=_started, response_model_exclude_none=True)
async def create(
    body: CreateBody, served: Served, caller: Calling, key: RepetitionKey = None
) -> SandboxAnswer:
    """Start a sandbox. It can be used when this answers."""
    return await _create(served, caller, body, key, secure=True)


@router.post("/sandboxes", status_code=201, responses=_started, response_model_exclude_none=True)
async def create_v1(
    body: CreateBodyV1, served: Served, caller: Calling, key: RepetitionKey = None
) -> SandboxAnswer:
    """Start a sandbox (old form: secured only if asked for)."""
    secure = body.secure is True
    network = body.network
    if network is not None and network.allow_public_traffic is False and not secure:
        raise ApiError(400, _PUBLIC_NEEDS_SECURE)
    return await _create(served, caller, body, key, secure=secure)


@router.get("/v2/sandboxes", response_model_exclude_none=True)
async def list_sandboxes(
    served: Served,
    caller: Calling,
    response: Response,
    metadata: Annotated[str | None, Query(description="Form-encoded pairs; all match.")] = None,
    state: Annotated[list[str] | None, Query(description="running, paused or both.")] = None,
    started_after: Annotated[str | None, Query(alias="startedAfter")] = None,
    template: str | None = None,
    order: Annotated[str, Query(description="By start: asc or desc.")] = "desc",
    limit: Annotated[int, Query(ge=1, le=PAGE)] = PAGE,
    next_page: Annotated[str | None, Query(alias="nextToken")] = None,
) -> list[ListedSandbox]:
    """List sandboxes, newest first, a page at a time."""
    if order not in ("asc", "desc"):
        raise ApiError(400, f"invalid order {order[:100]!r}: use asc or desc")
    try:
        query = ListQuery(
            states=parse_states(state or ()),
            owner=caller.owner,
            # One more than asked for tells whether there is another page.
            limit=limit + 1,
            descending=order == "desc",
            metadata=parse_metadata(metadata),
            started_after=parse_moment(started_after),
            template=template,
            after=parse_token(next_page),
        )
    except BadQuery as error:
        raise ApiError(400, str(error)) from error
    try:
        records = served.node.find(query)
    except TemplateNotFound:
        records = []
    if len(records) > limit:
        records = records[:limit]
        response.headers["X-Next-Token"] = next_token(
            records[-1].started_at, records[-1].sandbox_id
        )
    return [served.identity.listed(record) for record in records]


@router.get("/sandboxes", response_model_exclude_none=True)
async def list_sandboxes_v1(
    served: Served,
    caller: Calling,
    metadata: Annotated[str | None, Query(description="Form-encoded pairs; all match.")] = None,
) -> list[ListedSandbox]:
    """List running sandboxes (old form: all at once)."""
    try:
        query = ListQuery(
            states=frozenset({"running"}), owner=caller.owner, metadata=parse_metadata(metadata)
        )
    except BadQuery as error:
        raise ApiError(400, str(error)) from error
    return [served.identity.listed(record) for record in served.node.find(query)]


@router.get("/sandboxes/{sandbox_id}", responses=_found, response_model_exclude_none=True)
async def info(sandbox_id: SandboxId, served: Served) -> SandboxDetail:
    """Everything about a sandbox."""
    return served.identity.detail(served.node.get(sandbox_id))


@router.delete("/sandboxes/{sandbox_id}", status_code=204, responses=_found)
async def kill(sandbox_id: SandboxId, served: Served) -> None:
    """End a sandbox. Nothing of it is left when this answers."""
    await served.node.kill(sandbox_id)


@router.post("/sandboxes/{sandbox_id}/timeout", status_code=204, responses=_found)
async def set_timeout(body: TimeoutBody, sandbox_id: SandboxId, served: Served) -> None:
    """Let a sandbox end so many seconds from now."""
    await served.node.set_timeout(sandbox_id, body.timeout)


@router.post("/sandboxes/{sandbox_id}/refreshes", status_code=204, responses=_changed)
async def refresh(sandbox_id: SandboxId, served: Served, body: RefreshBody | None = None) -> None:
    """Keep a sandbox alive for so many seconds at least."""
    await served.node.extend(sandbox_id, (body or RefreshBody()).duration)


@router.put(
    "/sandboxes/{sandbox_id}/network", status_code=204, responses={**_changed, **declared((501,))}
)
async def update_network(body: NetworkUpdateBody, sandbox_id: SandboxId, served: Served) -> None:
    """Replace what a sandbox may reach. It is in force when this answers."""
    await served.node.update_network(sandbox_id, network_config(body), body.allow_internet_access)


@router.patch(
    "/sandboxes/{sandbox_id}/network", status_code=204, responses={**_changed, **declared((501,))}
)
async def set_network_mode(body: NetworkModeBody, sandbox_id: SandboxId, served: Served) -> None:
    """Enforce what a sandbox may reach, or only report what is not allowed. The rest stays."""
    await served.node.set_network_mode(sandbox_id, Mode(body.mode))


@router.get("/sandboxes/{sandbox_id}/network/explain", responses={**_found, **declared((503,))})
async def explain_network(
    sandbox_id: SandboxId,
    served: Served,
    target: Annotated[
        str,
        Query(
            min_length=1,
            max_length=2048,
            description="`https://example.com`, `tcp://db.example.com:5432`, `udp://1.1.1.1:53`, "
            "`icmp://1.1.1.1`.",
        ),
    ],
) -> NetworkExplanation:
    """Would a connection of the sandbox pass, and by which rule? Nothing is connected to."""
    return NetworkExplanation.model_validate(await served.node.explain_network(sandbox_id, target))


async def _create(
    served: Served,
    caller: Caller,
    body: CreateBody | CreateBodyV1,
    key: str | None,
    *,
    secure: bool,
) -> SandboxAnswer:
    request = CreateRequest(
        caller=caller,
        template=body.template_id,
        timeout=served.default_timeout if body.timeout is None else body.timeout,
        network=created_network(body),
        internet=body.allow_internet_access,
        metadata=body.metadata or {},
        env=body.env_vars or {},
        secure=secure,
        auto_pause=body.auto_pause is True,
        auto_pause_memory=body.auto_pause_memory is not False,
        auto_resume=body.auto_resume is not None and body.auto_resume.enabled,
    )

    async def start() -> SandboxAnswer:
        return served.identity.sandbox(await served.node.create(request))

    if key is None:
        return await start()
    return await served.repetitions.once(caller.owner, key, body, start)
