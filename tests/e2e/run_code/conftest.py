"""Sandboxes in which code runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from e2b_code_interpreter import Sandbox

from e2e.run_code.helpers import Make
from internet.node import Node


@pytest.fixture(scope="module")
def make(node: Node) -> Iterator[Make]:
    """Makes sandboxes that run code, and kills them."""
    made: list[Sandbox] = []

    def create(**options: Any) -> Sandbox:
        made.append(Sandbox.create(timeout=600, **options))
        return made[-1]

    yield create
    for sandbox in made:
        sandbox.kill()


@pytest.fixture(scope="module")
def sandbox(make: Make) -> Sandbox:
    """One for all tests that leave it as it was."""
    return make(envs={"FROM": "sandbox"})
