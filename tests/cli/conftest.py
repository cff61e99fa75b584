"""The command, for tests that need no node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs `sandgate` with a configuration of its own; no node runs there."""
    config = tmp_path / "config.toml"
    config.write_text(f'data_dir = "{tmp_path}/data"\n')

    def command(*arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SANDGATE_")}
        return subprocess.run(
            [*prefix, sys.executable, "-m", "sandgate", *arguments, "--config", str(config)],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=environment,
        )

    return command
