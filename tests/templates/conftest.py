from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandgate.templates import Template, load

TEMPLATES = Path(os.environ.get("SANDGATE_TEST_TEMPLATES", "/var/lib/sandgate/templates"))


@pytest.fixture(scope="session")
def built() -> dict[str, Template]:
    """The machine's templates; built here, by the command a user would run, if there are none."""
    subprocess.run(
        [sys.executable, "-m", "sandgate.templates", "build"],
        env={**os.environ, "SANDGATE_DATA_DIR": str(TEMPLATES.parent)},
        check=True,
        capture_output=True,
        timeout=500,
    )
    return load(TEMPLATES.parent)
