"""Unix sockets of the node's components: who may connect is said by owner and mode."""

from __future__ import annotations

import os
import socket
from pathlib import Path


def bind(path: Path, kind: socket.SocketKind, owner: tuple[int, int], mode: int) -> socket.socket:
    """A socket at `path`, instead of the one that was there before; it does not block.

    A user and a group, `owner`, may connect as far as `mode` lets them. To name others than
    ourselves takes root. Raises OSError.
    """
    path.unlink(missing_ok=True)
    bound = socket.socket(socket.AF_UNIX, kind)
    try:
        before = os.umask(0o777 & ~mode)
        try:
            bound.bind(str(path))
        finally:
            os.umask(before)
        os.chown(path, *owner)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound
