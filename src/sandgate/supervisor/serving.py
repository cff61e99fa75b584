"""A node that serves without a supervisor, for another to put its own components in place."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.runtime import linux
from sandgate.settings import Settings
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.record import NodeRecord
from sandgate.supervisor.takeover import standing

_PROXY = "haproxy"


@dataclass(frozen=True, slots=True)
class Serving:
    """What there is to take over."""

    components: Mapping[str, ProcessId]
    https_port: int
    listeners: tuple[socket.socket, socket.socket]
    """The sockets that clients and sandboxes connect to."""


def find_serving(
    settings: Settings, layout: Layout, previous: NodeRecord | None, opened: ExitStack
) -> Serving | None:
    """The node that `previous` tells of, if all of it stands and it serves what `settings` want.

    None: what is left of it has to end before another can be started. `opened` gets the sockets.
    """
    if previous is None or len(previous.listeners) != 2:
        return None
    if (
        previous.listen != settings.listen
        or previous.host != settings.domain
        or settings.https_port not in (None, previous.https_port)
    ):
        return None
    names = [row.name for row in previous.components]
    found = standing(layout.pid_dir, names)
    if _PROXY not in found or len(found) < len(names):
        return None
    with ExitStack() as mine:
        places = (settings.listen, settings.ingress_address)
        taken = [
            _listener(found[_PROXY], number, address, previous.https_port)
            for number, address in zip(previous.listeners, places, strict=True)
        ]
        sockets = [mine.enter_context(sock) for sock in taken if sock is not None]
        if len(sockets) < len(places):
            return None
        opened.push(mine.pop_all())
    return Serving(found, previous.https_port, (sockets[0], sockets[1]))


def _listener(
    owner: ProcessId, number: int, address: IPv4Address, port: int
) -> socket.socket | None:
    """The listening socket that `owner` has as descriptor `number`: the queue of those who connect
    is the same, so that nobody is refused."""
    try:
        process = os.pidfd_open(owner.pid)
    except ProcessLookupError:
        return None
    try:
        sock = socket.socket(fileno=linux.take_descriptor(process, number))
    except OSError:
        return None
    finally:
        os.close(process)
    try:
        right = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        if right and owner.alive() and sock.getsockname() == (str(address), port):
            return sock
    except OSError:
        pass  # it is no socket of ours
    sock.close()
    return None
