"""Is a component ready? Each probe says what is missing, or None."""

from __future__ import annotations

import http.client
import socket
import ssl
from ipaddress import IPv4Address
from pathlib import Path

_TIMEOUT = 5.0


def socket_missing(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> str | None:
    """Does something answer at the unix socket `path`?"""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
    return None


def https_missing(address: str, port: int, name: str, trusted: Path) -> str | None:
    """Does `GET /health` at `address`:`port` answer 2xx, with a certificate for `name`?

    `trusted` is a PEM file; any certificate in it is a trust anchor.
    """
    try:
        connection = open_https(address, port, name, trusted)
    except OSError as error:
        return f"https://{name}:{port}: {error}"
    try:
        connection.request("GET", "/health")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"https://{name}:{port}/health: {error!r}"
    finally:
        connection.close()
    return None if 200 <= status < 300 else f"https://{name}:{port}/health answers {status}"


def open_https(address: str, port: int, name: str, trusted: Path) -> http.client.HTTPConnection:
    """A connection to the node's entry, without name resolution and proxies. Raises OSError."""
    context = ssl.create_default_context(cafile=str(trusted))
    # The operator's file holds the certificate itself, not the authority that signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    reachable = "127.0.0.1" if IPv4Address(address).is_unspecified else address
    connection = http.client.HTTPConnection(name, port, timeout=_TIMEOUT)
    plain = socket.create_connection((reachable, port), timeout=_TIMEOUT)
    try:
        connection.sock = context.wrap_socket(plain, server_hostname=name)
    except OSError:
        plain.close()
        raise
    return connection
