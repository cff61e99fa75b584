"""How a component of a node tells its supervisor why it cannot run on this machine.

A component's standard input is a socket. Its configuration comes in by it, and the reason goes out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from typing import NoReturn

EXIT_STATUS = 78
"""`EX_CONFIG` of sysexits.h: started again, the component would end the same way."""

_MAX_REASON = 4096


def refuse(reason: str) -> NoReturn:
    """End this component for `reason`, which names the remedy."""
    text = reason.encode()[:_MAX_REASON]
    # Started by hand, standard input is a terminal or a pipe.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(0)) as supervisor:
        supervisor.send(text, socket.MSG_DONTWAIT)
    print(reason, file=sys.stderr)
    raise SystemExit(EXIT_STATUS)


def reason_from(component: socket.socket) -> str:
    """The reason that a component which ended with :data:`EXIT_STATUS` gave."""
    with contextlib.suppress(OSError):
        return component.recv(_MAX_REASON, socket.MSG_DONTWAIT).decode(errors="replace")
    return ""
