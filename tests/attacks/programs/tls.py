"""Attacks by what a TLS client shows."""

from __future__ import annotations

import shlex
import socket
import ssl
import subprocess
import time
from pathlib import Path

from . import wire


def hello(
    address: str,
    names: tuple[str, ...] = (),
    *,
    port: int = 443,
    extensions: int = 1,
    padding: int = 0,
    record: int = 16384,
    segment: int = 0,
    ech: bool = False,
) -> None:
    """A ClientHello to `address`, with no, one or several names, and cut up at will."""
    wanted = [name.encode("latin-1") for name in names]
    if extensions == 1:
        shown = [wire.server_names(*wanted)] if wanted else []
    else:
        shown = [wire.server_names(name) for name in wanted]
    if ech:
        # Outer ClientHello of draft-ietf-tls-esni: KDF, AEAD, config id, key, sealed inner hello.
        sealed = b"\0" + bytes.fromhex("0001000107") + wire.vector(bytes(32))
        shown.append((0xFE0D, sealed + wire.vector(bytes(240))))
    data = wire.records(wire.client_hello(shown, padding), record)
    size = segment or len(data)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    wire.talk(address, port, *pieces, pause=0.004)


def two_hellos(address: str, first: str, second: str) -> None:
    """Two ClientHellos in one record: readers of the first see another name than of the last."""
    messages = [wire.client_hello([wire.server_names(name.encode())]) for name in (first, second)]
    wire.talk(address, 443, wire.records(b"".join(messages)))


def handshake(address: str, name: str | None, host: str) -> None:
    """A whole handshake, then a request with any Host inside."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        wire.connect(address, 443) as plain,
        context.wrap_socket(plain, server_hostname=name) as client,
    ):
        client.sendall(wire.get(host))
        wire.listen(client)


def curl_resolve(name: str, address: str) -> None:
    """curl told another address for an allowed name."""
    for scheme, port in (("https", 443), ("http", 80)):
        command = f"curl -sk -m 2 --resolve {name}:{port}:{address} {scheme}://{name}/"
        subprocess.run(shlex.split(command), check=False, capture_output=True)


def hosts_file(name: str, address: str) -> None:
    """The same by /etc/hosts."""
    hosts = Path("/etc/hosts")
    before = hosts.read_text()
    try:
        hosts.write_text(f"{address} {name}\n{before}")
        for url in (f"https://{name}/", f"http://{name}/"):
            subprocess.run(["curl", "-sk", "-m", "2", url], check=False, capture_output=True)
    finally:
        hosts.write_text(before)


def not_tls(address: str, text: str) -> None:
    """Something else than TLS on its port."""
    wire.talk(address, 443, text.encode("latin-1"))


def drip(address: str, name: str, seconds: float, patience: float) -> bool:
    """A ClientHello at one byte a second: is it still listened to after `patience` seconds?"""
    data = wire.records(wire.client_hello([wire.server_names(name.encode())]))
    started = time.monotonic()
    with socket.create_connection((address, 443), wire.PATIENCE) as client:
        for byte in data:
            client.sendall(bytes([byte]))
            time.sleep(seconds)
            if time.monotonic() - started > patience:
                return True
    return False
