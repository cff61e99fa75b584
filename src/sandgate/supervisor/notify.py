"""The service manager's readiness protocol (sd_notify(3)), without a library."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> bool:
    """Send `state` (such as `READY=1`) if a service manager asked for it by NOTIFY_SOCKET.

    False if the manager did not take it, and may if it is told again.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return True
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1.0)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            # The manager is gone or busy; the node serves all the same.
            return False
    return True
