"""Load and servers, on the standard library only: they run in sandboxes and bare namespaces too.

`serve ADDRESS PORT...`, `connect COUNT ADDRESS PORT NAME`, `pull BYTES ADDRESS PORT NAME`,
`rate SECONDS WORKERS ADDRESS PORT NAME`; the clients print JSON. `files PEM ADDRESS PORT BYTES`.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable

_REQUEST = "GET /{} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n"


def serve(address: str, *ports: str) -> None:
    """Answer `GET /<number>` with that many bytes."""
    zeros = os.memfd_create("zeros")
    os.ftruncate(zeros, 64 << 20)
    selector = selectors.DefaultSelector()
    for port in ports:
        listener = socket.create_server((address, int(port)), backlog=1024)
        selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            assert isinstance(key.fileobj, socket.socket)
            connection, _ = key.fileobj.accept()
            threading.Thread(target=_answer, args=(connection, zeros), daemon=True).start()


def _answer(connection: socket.socket, zeros: int) -> None:
    with connection:
        head = connection.recv(4096)
        left = int(head.split(b" ")[1][1:] or b"0")
        length = f"Content-Length: {left}\r\nConnection: close"
        connection.sendall(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode())
        while left:
            left -= os.sendfile(connection.fileno(), zeros, 0, min(left, 64 << 20))


def connect(count: str, address: str, port: str, name: str) -> None:
    """Seconds of each of `count` TLS connections: dialled, shaken hands, one byte answered."""
    context = _context()
    print(json.dumps([_one_tls(context, address, int(port), name) for _ in range(int(count))]))


def rate(seconds: str, workers: str, address: str, port: str, name: str) -> None:
    """TLS connections a second by some processes at once."""
    pids, ends = [], []
    until = time.monotonic() + float(seconds)
    for _ in range(int(workers)):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            context, done = _context(), 0
            while time.monotonic() < until:
                _one_tls(context, address, int(port), name)
                done += 1
            os.write(write, str(done).encode())
            os._exit(0)
        os.close(write)
        pids.append(pid)
        ends.append(read)
    total = sum(int(os.read(end, 32) or b"0") for end in ends)
    for pid in pids:
        os.waitpid(pid, 0)
    print(json.dumps(total / float(seconds)))


def pull(size: str, address: str, port: str, name: str) -> None:
    """Bytes a second of one download."""
    with socket.create_connection((address, int(port)), 10) as connection:
        connection.sendall(_REQUEST.format(size, name).encode())
        buffer = bytearray(1 << 20)
        begun, left = time.perf_counter(), int(size)
        while left > 0:
            got = connection.recv_into(buffer)
            if not got:
                break
            left -= got
        print(json.dumps(int(size) / (time.perf_counter() - begun)))


def files(pem: str, address: str, port: str, size: str) -> None:
    """Over TLS: take any upload, answer any download with that many bytes. No less is possible."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server((address, int(port))) as listener:
        while True:
            raw, _ = listener.accept()
            threading.Thread(target=_one_file, args=(context, raw, int(size)), daemon=True).start()


def _one_file(context: ssl.SSLContext, raw: socket.socket, size: int) -> None:
    buffer = bytearray(1 << 20)
    with context.wrap_socket(raw, server_side=True) as connection:
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
        if head.startswith(b"GET"):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            for _ in range(0, size, len(buffer)):
                connection.sendall(buffer)
            return
        length = re.search(rb"\r\ncontent-length: (\d+)", head.lower())
        assert length is not None, head
        left = int(length[1]) - len(body)
        while left > 0:
            left -= connection.recv_into(buffer) or left
        written = b'[{"path":"/big","name":"big","type":"file"}]'
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (len(written), written)
        )


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _one_tls(context: ssl.SSLContext, address: str, port: int, name: str) -> float:
    begun = time.perf_counter()
    with socket.create_connection((address, port), 10) as raw:
        with context.wrap_socket(raw, server_hostname=name) as connection:
            connection.sendall(_REQUEST.format("", name).encode())
            connection.recv(1)
            return time.perf_counter() - begun


if __name__ == "__main__":
    known: dict[str, Callable[..., None]] = {
        "serve": serve,
        "connect": connect,
        "rate": rate,
        "pull": pull,
        "files": files,
    }
    known[sys.argv[1]](*sys.argv[2:])
