"""How a component of a node tells its supervisor why it cannot run on this machine.

A component's standard input is a file in memory that the supervisor made and keeps open. Its
content, the configuration, has been read by then; the reason takes its place.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

EXIT_STATUS = 78
"""`EX_CONFIG` of sysexits.h: started again, the component would end the same way."""

_MAX_REASON = 4096


def refuse(reason: str) -> NoReturn:
    """End this component for `reason`, which names the remedy."""
    text = reason.encode()[:_MAX_REASON]
    with contextlib.suppress(OSError):  # started by hand: standard input is a terminal or a pipe
        os.ftruncate(0, 0)
        os.pwrite(0, text, 0)
    print(reason, file=sys.stderr)
    raise SystemExit(EXIT_STATUS)


def reason_in(handle: int) -> str:
    """The reason that a component which ended with :data:`EXIT_STATUS` left in its input."""
    return os.pread(handle, _MAX_REASON, 0).decode(errors="replace")
