"""A node over fakes of the other processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.fakes import World, make_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A started node."""
    made = make_world(tmp_path, max_sandboxes=5, max_timeout=3600)
    await made.node.start()
    try:
        yield made
    finally:
        made.open_gates()
        await made.node.close()
        made.store.close()
