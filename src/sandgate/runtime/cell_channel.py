"""What a cell and the launcher say to each other, and where those who ask for a sandbox find it.

Apart from :mod:`sandgate.runtime.cell`, which imports all of envd: the launcher starts without it.
"""

from __future__ import annotations

ENVD_PORT = 49983
"""Where E2B's SDKs expect the daemon (wire contract, section 0)."""
INTERPRETER_PORT = 49999
"""Where the code interpreter's SDKs expect theirs (wire contract, section 4)."""

READY = b"ready"
UP = b"up"
FAILED = b"failed:"
MAX_MESSAGE = 4096
