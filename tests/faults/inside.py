"""Runs inside sandboxes: programs that notice when something of theirs is lost, on the stdlib only.

`python3 inside.py count FILE`, `python3 inside.py hold ADDRESS PORT FILE`,
`python3 inside.py knock FILE ADDRESS:PORT...` and `python3 inside.py reach FILE HOST...`.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO


def count(path: str) -> None:
    """Write one number after the other to `path` and to standard output."""
    with open(path, "w") as file:
        number = 0
        while True:
            for out in (file, sys.stdout):
                out.write(f"{number}\n")
                out.flush()
            number += 1
            time.sleep(0.005)


def hold(address: str, port: str, path: str) -> None:
    """Keep one connection to an echo server busy; write down each answer, and how it ended."""
    with socket.create_connection((address, int(port)), 5) as held, open(path, "w") as file:
        held.settimeout(5)
        number = 0
        try:
            while True:
                sent = f"{number:08}".encode()
                held.sendall(sent)
                got = b""
                while len(got) < len(sent):
                    got += held.recv(len(sent) - len(got)) or b"<the end>"
                file.write("ok\n" if got == sent else f"lost: {got!r}\n")
                file.flush()
                number += 1
                time.sleep(0.02)
        except OSError as error:
            file.write(f"lost: {error}\n")


def knock(path: str, *targets: str) -> None:
    """Try what is forbidden, for ever: `open` in `path` for each time that bytes came back."""
    with open(path, "w") as file:
        while True:
            for target in targets:
                address, _, port = target.partition(":")
                try:
                    with socket.create_connection((address, int(port)), 0.3) as door:
                        door.settimeout(0.3)
                        door.sendall(b"GET / HTTP/1.1\r\nHost: attacker.example.net\r\n\r\n")
                        file.write(f"open {target}\n" if door.recv(1) else f"shut {target}\n")
                except OSError:
                    file.write(f"shut {target}\n")
                file.flush()
            time.sleep(0.005)


def reach(path: str, *hosts: str) -> None:
    """Fetch a page of each host, again and again; write down when (monotonic) each was there."""
    with open(path, "w") as file:
        fetchers = [threading.Thread(target=_fetch, args=(file, host)) for host in hosts]
        for fetcher in fetchers:
            fetcher.start()
        for fetcher in fetchers:
            fetcher.join()


def _fetch(file: TextIO, host: str) -> None:
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, 80), 5) as web:
            web.settimeout(5)
            web.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            if web.recv(9) == b"HTTP/1.1 ":
                file.write(f"{time.monotonic()} {host}\n")
                file.flush()
        time.sleep(0.01)


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {
        **{"count": count, "hold": hold},
        **{"knock": knock, "reach": reach},
    }
    programs[sys.argv[1]](*sys.argv[2:])
