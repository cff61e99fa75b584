"""The service manager's readiness protocol (sd_notify(3)), without a library."""

from __future__ import annotations

import os
import socket


def notify(state: str) -> None:
    """Send `state` (such as `READY=1`) if a service manager asked for it by NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or address[0] not in "/@":
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(1.0)
        try:
            sock.sendto(state.encode(), address)
        except OSError:
            # The manager is gone or deaf; the node serves all the same.
            return
