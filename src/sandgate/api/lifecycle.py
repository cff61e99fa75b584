"""Routes that pause sandboxes, and bring them back."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from sandgate.api.dependencies import SandboxId, Served
from sandgate.api.errors import ApiError, declared
from sandgate.api.requests import ConnectBody, ConnectBodyV1, PauseBody, ResumeBody
from sandgate.api.responses import SandboxAnswer
from sandgate.api.routing import new_router

router = new_router("sandboxes", (400, 401, 404, 408, 409, 413, 500, 503))

_RESUMED: dict[int | str, dict[str, Any]] = {
    201: {"model": SandboxAnswer, "description": "It was paused, and is resumed."}
}


@router.post("/sandboxes/{sandbox_id}/pause", status_code=204, responses=declared((501,)))
async def pause(sandbox_id: SandboxId, served: Served, body: PauseBody | None = None) -> None:
    """Pause a sandbox. It holds no processor any more when this answers. 409: it is paused."""
    memory = body is None or body.memory is not False
    await served.node.pause(sandbox_id, memory=memory)


@router.post(
    "/v2/sandboxes/{sandbox_id}/connect", responses=_RESUMED, response_model_exclude_none=True
)
async def connect(
    sandbox_id: SandboxId, served: Served, response: Response, body: ConnectBody | None = None
) -> SandboxAnswer:
    """What is needed to use a sandbox, which is resumed if it is paused.

    The time of one that runs may be extended, and is never shortened.
    """
    body = body or ConnectBody()
    memory = body.memory is not False
    return await _connect(served, sandbox_id, body.timeout, response, memory=memory)


@router.post(
    "/sandboxes/{sandbox_id}/connect", responses=_RESUMED, response_model_exclude_none=True
)
async def connect_v1(
    body: ConnectBodyV1, sandbox_id: SandboxId, served: Served, response: Response
) -> SandboxAnswer:
    """Connect (old form)."""
    return await _connect(served, sandbox_id, body.timeout, response)


@router.post("/sandboxes/{sandbox_id}/resume", status_code=201, response_model_exclude_none=True)
async def resume(
    sandbox_id: SandboxId, served: Served, response: Response, body: ResumeBody | None = None
) -> SandboxAnswer:
    """Resume a paused sandbox (old form of connect). One that runs: 409, as old SDKs expect."""
    if served.node.get(sandbox_id).state == "running":
        raise ApiError(409, f"Sandbox {sandbox_id} is already running")
    return await _connect(served, sandbox_id, (body or ResumeBody()).timeout, response)


async def _connect(
    served: Served, sandbox_id: str, seconds: int, response: Response, *, memory: bool = True
) -> SandboxAnswer:
    record, resumed = await served.node.connect(sandbox_id, seconds, memory=memory)
    response.status_code = 201 if resumed else 200
    return served.identity.sandbox(record)
