"""What a policy allows, and must still work after an attack."""

from __future__ import annotations

import socket


def http(address: str, host: str) -> bool:
    """An ordinary request to the allowed site."""
    request = f"GET /control HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((address, 80), 5) as client:
        client.sendall(request.encode())
        return client.recv(100).startswith(b"HTTP/1.1 200")


def udp(address: str) -> bool:
    """A datagram there and back."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b"control", (address, 9999))
        return client.recv(100) == b"control"
