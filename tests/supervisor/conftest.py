"""Nodes of the `sandgate` command."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from internet import namespaces
from supervisor.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    namespace = f"sgnode{os.getpid()}"
    # Not below pytest's directory, which other users cannot enter.
    directory = Path(tempfile.mkdtemp(prefix="sandgate-test-"))
    directory.chmod(0o755)
    namespaces.create(namespace)
    try:
        namespaces.run(
            *("ip", "-n", namespace, "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        )
        for link in ("up0", "up1"):
            namespaces.run("ip", "-n", namespace, "link", "set", link, "up")
        namespaces.run("ip", "-n", namespace, "addr", "add", "192.0.2.1/24", "dev", "up0")
        home = Home(directory, namespace)
        yield home
        home.sandgate("down")
        assert home.groups() == []
    finally:
        namespaces.delete(namespace)
        shutil.rmtree(directory)
