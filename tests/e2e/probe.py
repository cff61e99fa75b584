"""Runs inside a sandbox, on nothing but the standard library: raw clients whose view is exact.

`python3 probe.py FUNCTION JSON_ARGUMENTS` prints JSON. Outcomes: `answered` (with `data`),
`connected` (nothing was to be read), `refused` (by a reset or an ICMP port unreachable, before
the connection stood), `reset` (after), `closed` (the peer ended it), `prohibited` (another ICMP
error), `timeout`, `forbidden` (the sandbox may not even try).
"""

from __future__ import annotations

import errno
import json
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

Seen = dict[str, Any]
_UNREACHABLE = (
    *(errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EHOSTDOWN),
    errno.EADDRNOTAVAIL,  # no address of that family
)


def _timed(action: Callable[[], tuple[str, bytes]]) -> Seen:
    started = time.monotonic()
    data = b""
    try:
        outcome, data = action()
    except TimeoutError:
        outcome = "timeout"
    except ConnectionRefusedError:
        outcome = "refused"
    except (ConnectionResetError, ConnectionAbortedError, BrokenPipeError):
        outcome = "reset"
    except ssl.SSLError as error:
        outcome, data = "closed", str(error).encode()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            outcome = "forbidden"
        elif error.errno in _UNREACHABLE:
            outcome = "prohibited"
        else:
            raise
    return {
        "outcome": outcome,
        "seconds": time.monotonic() - started,
        "data": data.decode("latin-1"),
    }


def _read(connection: socket.socket | ssl.SSLSocket) -> tuple[str, bytes]:
    """One HTTP response, or whatever else comes before silence."""
    data = b""
    while piece := connection.recv(1 << 16):
        data += piece
        head, end, body = data.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if not data.startswith(b"HTTP/") or (end and length and len(body) >= int(length)):
            break
    return ("answered", data) if data else ("closed", b"")


def tcp(address: str, port: int, *pieces: str, timeout: float = 8) -> Seen:
    """Connect, send the pieces as segments of their own, and read."""

    def act() -> tuple[str, bytes]:
        with socket.create_connection((address, port), timeout) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for index, piece in enumerate(pieces):
                time.sleep(0.02 if index else 0)
                connection.sendall(piece.encode("latin-1"))
            return _read(connection) if pieces else ("connected", b"")

    return _timed(act)


def listen_first(address: str, port: int, timeout: float = 8) -> Seen:
    """Connect and say nothing."""

    def act() -> tuple[str, bytes]:
        with socket.create_connection((address, port), timeout) as connection:
            return _read(connection)

    return _timed(act)


def half_close(address: str, port: int, data: str) -> Seen:
    """Send, close the sending direction, and read."""

    def act() -> tuple[str, bytes]:
        with socket.create_connection((address, port), 8) as connection:
            connection.sendall(data.encode())
            connection.shutdown(socket.SHUT_WR)
            return _read(connection)

    return _timed(act)


def requests(address: str, port: int, *requests: str) -> list[Seen]:
    """Send HTTP requests one after another on one connection; stops when it is gone."""
    seen: list[Seen] = []
    with socket.create_connection((address, port), 8) as connection:
        for request in requests:

            def act(request: str = request) -> tuple[str, bytes]:
                connection.sendall(request.encode("latin-1"))
                return _read(connection)

            seen.append(_timed(act))
            if seen[-1]["outcome"] != "answered":
                break
    return seen


def udp(address: str, port: int, data: str = "ping", timeout: float = 3) -> Seen:
    """Send a datagram and wait for the answer."""

    def act() -> tuple[str, bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(timeout)
            client.connect((address, port))
            client.send(data.encode())
            return "answered", client.recv(65536)

    return _timed(act)


def repeat(times: int, call: str, *arguments: Any) -> Seen:
    """The same probe many times: the slowest, with all outcomes that were seen as data."""
    seen = [globals()[call](*arguments) for _ in range(times)]
    slowest: Seen = max(seen, key=lambda one: float(one["seconds"]))
    return {**slowest, "data": " ".join(sorted({one["outcome"] for one in seen}))}


def each(call: str, arguments: list[list[Any]]) -> list[Seen]:
    """The same probe with several arguments, one after another."""
    return [globals()[call](*some) for some in arguments]


def at_once(call: str, arguments: list[list[Any]]) -> list[Seen]:
    """The same probe with several arguments, all at the same time."""
    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(lambda some: globals()[call](*some), arguments))


def hold(address: str, port: int, seconds: float) -> Seen:
    """Keep a connection to an echo server busy; says how it ended."""

    def act() -> tuple[str, bytes]:
        with socket.create_connection((address, port), 8) as connection:
            connection.settimeout(2)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                connection.sendall(b"ping")
                if not connection.recv(4):
                    return "closed", b""
                time.sleep(0.02)
            return "connected", b""

    return _timed(act)


def ping(address: str) -> Seen:
    """ICMP echo, as `ping` does it without privileges."""

    def act() -> tuple[str, bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as echo:
            echo.settimeout(3)
            echo.connect((address, 0))
            echo.send(bytes.fromhex("0800f7ff00000000"))
            return "answered", echo.recv(1500)

    return _timed(act)


def spoof(source: str, destination: str, port: int) -> Seen:
    """Send a datagram and a SYN with another source address, by raw IP."""

    def act() -> tuple[str, bytes]:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            for protocol, payload in (
                (17, struct.pack("!HHHH", 4000, port, 12, 0) + b"ping"),
                (6, struct.pack("!HHIIBBHHH", 4000, port, 1, 0, 0x50, 2, 1024, 0, 0)),
            ):
                addresses = socket.inet_aton(source) + socket.inet_aton(destination)
                header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
                raw.sendto(header + addresses + payload, (destination, 0))
        return "connected", b""

    return _timed(act)


def spoof_frame(source: str, destination: str, port: int) -> Seen:
    """The same as a whole Ethernet frame, past the kernel's routing."""

    def act() -> tuple[str, bytes]:
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0x0008) as link:
            payload = struct.pack("!HHHH", 4000, port, 12, 0) + b"ping"
            addresses = socket.inet_aton(source) + socket.inet_aton(destination)
            head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 0, 0, 64, 17)
            total = sum(struct.unpack("!9H", head + addresses))
            total = (total & 0xFFFF) + (total >> 16)
            checksum = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
            with open("/proc/net/arp") as table:
                gateways = [line.split()[3] for line in table if "eth0" in line]
            hardware = bytes.fromhex(gateways[0].replace(":", "")) if gateways else b"\xff" * 6
            link.sendto(head + checksum + addresses + payload, ("eth0", 0x0800, 0, 0, hardware))
        return "connected", b""

    return _timed(act)


def tls(address: str, sni: str | None, host: str, padding: int = 0, cut: str = "") -> Seen:
    """A TLS handshake to port 443 with any SNI, then a request with any Host.

    `padding` makes the ClientHello larger by about that many bytes; `cut` sends it in `segments`
    of TCP or in several TLS `records`.
    """

    def act() -> tuple[str, bytes]:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if padding:
            context.set_alpn_protocols([f"{n:0>200}" for n in range(padding // 201)])
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = context.wrap_bio(incoming, outgoing, server_hostname=sni)
        with socket.create_connection((address, 443), 8) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def pump(step: Callable[[], Any]) -> Any:
                while True:
                    try:
                        result = step()
                    except ssl.SSLWantReadError:
                        _send(connection, outgoing.read(), cut)
                        data = connection.recv(1 << 16)
                        if not data:
                            raise ConnectionResetError from None
                        incoming.write(data)
                    else:
                        _send(connection, outgoing.read(), "")
                        return result

            pump(session.do_handshake)
            request = f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
            pump(lambda: session.write(request))
            data = b""
            while b"\r\n\r\n" not in data or not data.endswith(b"\n"):
                data += pump(lambda: session.read(1 << 16))
            return "answered", data

    return _timed(act)


def _send(connection: socket.socket, data: bytes, cut: str) -> None:
    if cut == "records" and data[:1] == b"\x16":
        (length,) = struct.unpack("!H", data[3:5])
        payload, rest = data[5 : 5 + length], data[5 + length :]
        pieces = [payload[at : at + 50] for at in range(0, length, 50)]
        data = b"".join(data[:3] + struct.pack("!H", len(piece)) + piece for piece in pieces) + rest
    if cut == "segments":
        for at in range(0, len(data), 100):
            connection.sendall(data[at : at + 100])
            time.sleep(0.005)
    elif data:
        connection.sendall(data)


def ipv6(address: str, port: int) -> Seen:
    """Connect over IPv6."""

    def act() -> tuple[str, bytes]:
        with socket.create_connection((address, port), 3):
            return "connected", b""

    return _timed(act)


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
