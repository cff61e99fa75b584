"""`run_code` with several versions of the official packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(900)
def test_every_version_of_the_packages_runs_code() -> None:
    """In a process of its own: it moves into another network namespace."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    done = subprocess.run(
        [sys.executable, "-m", "sdk.run_code", f"{base}/sandgate/compatibility"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": works") == 7
