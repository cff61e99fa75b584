"""Is the node up? Asked without a key, by `sandgate status` and by load balancers."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from sandgate.api.dependencies import Served
from sandgate.api.routing import new_router


class HealthAnswer(BaseModel):
    """What is up at this moment."""

    ready: bool
    """Can sandboxes be created and reached?"""
    components: dict[str, bool]
    sandboxes: int
    """How many are alive."""


class NotReadyAnswer(HealthAnswer):
    """The same, in the shape of an error too."""

    code: int = 503
    message: str


router = new_router("node")


@router.get("/health", response_model=HealthAnswer, responses={503: {"model": NotReadyAnswer}})
async def health(served: Served) -> HealthAnswer | JSONResponse:
    """200 if the node is ready, else 503."""
    state = served.node.health()
    if state.ready:
        return HealthAnswer(ready=True, components=state.components, sandboxes=state.sandboxes)
    missing = ", ".join(name for name, up in state.components.items() if not up)
    answer = NotReadyAnswer(
        ready=False,
        components=state.components,
        sandboxes=state.sandboxes,
        message=f"the node is not ready: waiting for {missing}",
    )
    return JSONResponse(answer.model_dump(), 503, {"Should-Retry": "true"})
