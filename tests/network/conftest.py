"""Fixtures for the network's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from network import netlab


@pytest.fixture
def lab() -> Iterator[netlab.Lab]:
    """A node's network with an outside, fresh for each test."""
    with netlab.lab() as made:
        yield made
