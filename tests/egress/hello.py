"""ClientHellos made by hand, well-formed and otherwise."""

from __future__ import annotations

import ssl


def vector(width: int, body: bytes) -> bytes:
    """`body` behind its length in `width` bytes."""
    return len(body).to_bytes(width, "big") + body


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def server_names(*names: bytes, kind: int = 0) -> bytes:
    """A server_name extension."""
    return extension(0, vector(2, b"".join(bytes([kind]) + vector(2, name) for name in names)))


def message(*extensions: bytes, session: bytes = b"", tail: bytes = b"") -> bytes:
    """The handshake message."""
    body = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, b"\x13\x01") + b"\x01\x00"
    if extensions:
        body += vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body + tail)


def records(handshake: bytes, size: int = 16_384) -> bytes:
    """The message in TLS records of at most `size` bytes."""
    parts = (handshake[i : i + size] for i in range(0, len(handshake), size))
    return b"".join(b"\x16\x03\x01" + vector(2, part) for part in parts)


def hello(*extensions: bytes, size: int = 16_384) -> bytes:
    """A ClientHello in records of at most `size` bytes."""
    return records(message(*extensions), size)


def genuine(name: str) -> bytes:
    """What the ssl module sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("the handshake cannot be over")
