"""Servers that have no business with sandboxes: `python -m attacks.bystander` counts who comes.

Run in a node's own namespace, they stand for the services of its machine; the count is printed for
each line that comes in. Nothing but contacts by TCP connections and datagrams is counted.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from internet import namespaces

PORTS = (80, 7000)
UDP_PORT = 7000
_HERE = Path(__file__).resolve().parent


class Bystander:
    """A context manager: the side of the tests."""

    def __init__(self, namespace: str) -> None:
        with namespaces.inside(namespace):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "attacks.bystander"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=_HERE.parent,
                env={**os.environ, "PYTHONPATH": str(_HERE.parent)},
            )
        self.count()  # it listens

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def count(self) -> int:
        """Contacts so far."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def _serve() -> None:
    count = 0
    waiting = selectors.DefaultSelector()
    for port in PORTS:
        listener = socket.create_server(("0.0.0.0", port), backlog=128)
        waiting.register(listener, selectors.EVENT_READ, "tcp")
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("0.0.0.0", UDP_PORT))
    waiting.register(datagrams, selectors.EVENT_READ, "udp")
    waiting.register(sys.stdin, selectors.EVENT_READ, "input")
    while True:
        ready = sorted(waiting.select(), key=lambda pair: pair[0].data == "input")
        for key, _ in ready:
            if key.data == "input":
                if not os.read(0, 1024):
                    return
                print(count, flush=True)
                continue
            count += 1
            if key.data == "udp":
                _, peer = datagrams.recvfrom(2048)
                datagrams.sendto(b"heard", peer)
            else:
                assert isinstance(key.fileobj, socket.socket)
                accepted, _ = key.fileobj.accept()
                accepted.sendall(b"HTTP/1.0 200 heard\r\n\r\nheard\n")
                accepted.close()


if __name__ == "__main__":
    _serve()
