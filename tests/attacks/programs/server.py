"""A server of another sandbox: writes down who comes. `python3 -m programs.server FILE`."""

from __future__ import annotations

import select
import socket
import sys
from contextlib import suppress

PORT = 7000


def main(path: str) -> None:
    """Serve until killed."""
    listener = socket.create_server(("0.0.0.0", PORT))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", PORT))
    with open(path, "a", buffering=1) as heard:
        while True:
            ready, _, _ = select.select([listener, datagrams], [], [])
            if listener in ready:
                accepted, peer = listener.accept()
                heard.write(f"tcp {peer[0]}\n")
                accepted.settimeout(1)
                with suppress(OSError):
                    accepted.recv(4096)  # closing before would reset the connection
                accepted.sendall(b"HTTP/1.0 200 heard\r\n\r\nheard\n")
                accepted.close()
            if datagrams in ready:
                _, peer = datagrams.recvfrom(2048)
                heard.write(f"udp {peer[0]}\n")


if __name__ == "__main__":
    main(sys.argv[1])
