"""Tells a gate something that must not hold up the life of a sandbox."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from sandgate.node.ports import GATE_ERRORS

GATE_SECONDS = 1.0
"""How long a gate may hold up a step."""

_log = logging.getLogger(__name__)


async def tell(work: Awaitable[None], gate: str, sandbox_id: str) -> None:
    """Do `work`, a call to `gate`. A gate that cannot is down, and is told everything anew."""
    task = asyncio.ensure_future(work)
    # Not cancelled: a client that is interrupted in the middle would lose its place.
    done, _ = await asyncio.wait({task}, timeout=GATE_SECONDS)
    if not done:
        task.add_done_callback(lambda late: late.cancelled() or late.exception())
        _log.warning("sandbox %s: %s is slow to hear of it", sandbox_id, gate)
    elif (error := task.exception()) is not None:
        if not isinstance(error, GATE_ERRORS):
            raise error
        _log.warning("sandbox %s: %s: %s", sandbox_id, gate, error)
