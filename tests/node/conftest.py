"""A node over fakes of the other processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.fakes import World, running_world


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A started node."""
    async with running_world(tmp_path) as made:
        yield made
