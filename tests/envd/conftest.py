from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from envd.harness import Daemon, running


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that all tests share; each uses paths of its own."""
    with running(tmp_path_factory.mktemp("root")) as started:
        yield started
        imports = started.root / "run/imports"
        assert not imports.exists(), f"not preloaded: {imports.read_text().split()}"


@pytest.fixture
def client(daemon: Daemon) -> Iterator[httpx.Client]:
    with daemon.client() as opened:
        yield opened
