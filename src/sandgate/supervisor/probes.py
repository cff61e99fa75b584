"""Is a component ready? Each probe says what is missing, or None."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

_TIMEOUT = 5.0
_MAX_ANSWER = 65_536
_UNEXPECTED = (ValueError, LookupError, TypeError, OverflowError, RecursionError)
"""What JSON of another shape raises; who answers is less trusted than who asks."""


def socket_missing(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> str | None:
    """Does something answer at the unix socket `path`?"""
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_TIMEOUT)
        try:
            sock.connect(str(path))
        except OSError as error:
            return f"{path}: {(error.strerror or str(error)).lower()}"
    return None


@dataclass(frozen=True, slots=True)
class Health:
    """What `GET /health` says."""

    missing: str | None
    """Why the node is not ready; None if it is."""
    sandboxes: int | None = None
    """How many are alive, if the API said so."""


def https_health(address: str, port: int, name: str, trusted: Path) -> Health:
    """Ask `GET /health` at `address`:`port`, which must show a certificate for `name`.

    `trusted` is a PEM file; any certificate in it is a trust anchor. Uses neither name resolution
    nor proxies.
    """
    where = f"https://{name}:{port}/health"
    connection = http.client.HTTPConnection(name, port, timeout=_TIMEOUT)
    try:
        connection.sock = connect_tls(address, port, name, trusted)
        connection.request("GET", "/health")
        response = connection.getresponse()
        answer = json.loads(response.read(_MAX_ANSWER))
        if response.status != 200:
            return Health(f"{where} answers {response.status}: {answer['message']}")
        return Health(None, int(answer["sandboxes"]))
    except (OSError, http.client.HTTPException, *_UNEXPECTED) as error:
        return Health(f"{where}: {error}")
    finally:
        connection.close()


def connect_tls(address: str, port: int, name: str, trusted: Path) -> ssl.SSLSocket:
    """A TLS connection to a server that must show a certificate for `name`; `trusted` is PEM.

    Raises OSError.
    """
    context = ssl.create_default_context(cafile=str(trusted))
    # The operator's file holds the certificate itself, not the authority that signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    reachable = "127.0.0.1" if IPv4Address(address).is_unspecified else address
    plain = socket.create_connection((reachable, port), timeout=_TIMEOUT)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except OSError:
        plain.close()
        raise
