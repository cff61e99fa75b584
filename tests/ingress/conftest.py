from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingress.harness import Gate, running


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    """A running HAProxy that all tests of a module share; its routes come from each test."""
    with running(Gate(tmp_path_factory.mktemp("gate"))) as started:
        yield started
