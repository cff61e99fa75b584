"""What the gateway's tests say to it, and how they hear that they are refused."""

from __future__ import annotations

import os
import socket
import time

import pytest

from egress.lab import FIRST, Lab


def get(name: str, path: str = "/", more: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {name}\r\n{more}\r\n".encode()


def response(sock: socket.socket) -> str:
    """The body of one response with a Content-Length; what follows it is left unread."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        received = sock.recv(1)
        assert received, f"closed after {head!r}"
        head += received
    size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    body = bytearray()
    while len(body) < size:
        received = sock.recv(size - len(body))
        assert received, f"closed after {len(body)} of {size} bytes"
        body += received
    return body.decode()


def assert_reset(sock: socket.socket, within: float = 1.0) -> None:
    """The connection is cut off with a TCP reset, not just closed."""
    start = time.monotonic()
    # The ssl module takes a reset for an end of input; below it, it is to be seen.
    with socket.socket(fileno=os.dup(sock.fileno())) as raw:
        raw.settimeout(within)
        with pytest.raises(ConnectionResetError):
            while raw.recv(65536):
                pass
    assert time.monotonic() - start < within


def assert_refused(lab: Lab, address: str, port: int, source: str = FIRST) -> None:
    """A connection is reset before anything is sent; that may be seen while connecting."""
    with pytest.raises(ConnectionResetError), lab.connect(address, port, source) as sock:
        sock.settimeout(1)
        sock.recv(1)
