"""The choice of the port of the HTTPS entry."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address

STANDARD_PORT = 443
FALLBACK_PORT = 8443


class PortError(RuntimeError):
    """No usable port. The text names the address and the remedy."""


def choose_port(
    addresses: Iterable[IPv4Address], wanted: int | None, previous: int | None = None
) -> int:
    """The port to listen on at all of `addresses`.

    `wanted` is the operator's setting; without one it is `previous` (the port of the node that
    this one takes over from, which clients know), 443 or 8443, whichever is free first. Raises
    :class:`PortError`.
    """
    addresses = tuple(addresses)
    if wanted is not None:
        why = _why_not(addresses, wanted)
        if why:
            raise PortError(
                f"https_port = {wanted}: {why}; stop what listens there "
                f"(`ss -ltnp sport = :{wanted}`) or set another https_port"
            )
        return wanted
    candidates = dict.fromkeys(
        port for port in (previous, STANDARD_PORT, FALLBACK_PORT) if port is not None
    )
    reasons = []
    for port in candidates:
        why = _why_not(addresses, port)
        if not why:
            return port
        reasons.append(why)
    raise PortError(f"no free port for the HTTPS entry ({'; '.join(reasons)}); set https_port")


def _why_not(addresses: Iterable[IPv4Address], port: int) -> str | None:
    for address in addresses:
        error = bind_error(address, port)
        if error is not None:
            return f"{address}:{port}: {error}"
    return None


def require_local(listen: IPv4Address) -> None:
    """Raises :class:`PortError` unless programs can listen at this address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.bind((str(listen), 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise PortError(
                    f"listen = {listen}: this machine has no such address; set listen to one that "
                    "it has (see `ip -4 addr`), or to 0.0.0.0 for all of them"
                ) from None
            raise PortError(
                f"listen = {listen}: {error.strerror or error}; set another address"
            ) from error


def bind_error(
    address: IPv4Address, port: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> str | None:
    """Why a listener cannot be opened at `address`:`port`, or None if it can.

    The address need not be configured yet: the node adds its own when it starts.
    """
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as sock:
        sock.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        try:
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(address), port))
            if kind == socket.SOCK_STREAM:
                sock.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return "already in use"
            return (error.strerror or str(error)).lower()
    return None


def open_listener(address: IPv4Address, port: int) -> socket.socket:
    """A listening socket, for HAProxy to inherit: whoever connects while HAProxy is started again
    waits, and is not refused. The address need not be configured yet. Raises :class:`PortError`.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.SOL_IP, _IP_FREEBIND, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address), port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise PortError(f"cannot listen at {address}:{port}: {error.strerror or error}") from error
    return sock


_BACKLOG = 4096
_IP_FREEBIND = 15
"""From linux/in.h; the socket module does not name it."""
