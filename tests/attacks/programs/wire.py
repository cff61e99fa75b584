"""Bytes and sockets that several programs use."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Sequence

PATIENCE = 0.25
"""Seconds to wait for an answer that may never come."""
_AFTERWARDS = 0.1
"""Seconds to wait for more, once something has come."""
CRLF = "\r\n"


def interface() -> str:
    """The link that leads outside."""
    return min(name for name in os.listdir("/sys/class/net") if name != "lo")


def connect(address: str, port: int) -> socket.socket:
    """A TCP connection."""
    client = socket.create_connection((address, port), PATIENCE)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def listen(client: socket.socket) -> bytes:
    """What comes until silence, an end or a reset."""
    data = b""
    try:
        while piece := client.recv(1 << 16):
            data += piece
            client.settimeout(_AFTERWARDS)
    except OSError:
        pass
    return data


def talk(address: str, port: int, *pieces: bytes, pause: float = 0.02) -> bytes:
    """Send pieces as segments of their own, and return what comes back."""
    with connect(address, port) as client:
        for index, piece in enumerate(pieces):
            time.sleep(pause if index else 0)
            client.sendall(piece)
        return listen(client)


def datagram(address: str, port: int, payload: bytes) -> bytes:
    """Send a datagram, and return the answer. Raises OSError without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.connect((address, port))
        client.send(payload)
        return client.recv(65536)


def vector(data: bytes, width: int = 2) -> bytes:
    """With the length in front."""
    return len(data).to_bytes(width, "big") + data


def server_names(*names: bytes) -> tuple[int, bytes]:
    """The TLS extension with these names."""
    return 0, vector(b"".join(b"\0" + vector(name) for name in names))


def client_hello(
    extensions: Sequence[tuple[int, bytes]], padding: int = 0, first: bytes = b""
) -> bytes:
    """A ClientHello message, without records around it. Whole enough for OpenSSL to answer."""
    groups = (10, vector(struct.pack("!HH", 0x1D, 0x17)))
    signatures = (13, vector(struct.pack("!HHH", 0x0804, 0x0403, 0x0401)))
    everything = [*extensions, groups, signatures]
    if padding:
        everything.append((21, bytes(padding)))
    block = b"".join(struct.pack("!H", kind) + vector(body) for kind, body in everything)
    suites = struct.pack("!HHHH", 0xC02F, 0xC030, 0xC02B, 0x009C)
    body = b"\3\3" + os.urandom(32) + vector(b"", 1) + vector(suites) + b"\1\0"
    return first + b"\1" + vector(body + vector(block), 3)


def records(message: bytes, size: int = 16384) -> bytes:
    """A handshake message as TLS records of at most `size` bytes."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\3\1" + vector(piece) for piece in pieces)


def get(host: str, *headers: str, path: str = "/", body: str = "") -> bytes:
    """An HTTP request."""
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", body]
    return CRLF.join(lines).encode("latin-1")
