"""A launcher that starts again makes the table anew; what both tables allow goes on."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing

from network.netlab import RESET, Lab, make_socket, read_datagram, tcp_outcome
from sandgate.network.namespaces import inside
from sandgate.policy import EgressPolicy, parse_policy

PORT = 7
FLOWS = 12
ROUNDS = 25
SOME = parse_policy(["1.1.1.1", "example.com"], ["0.0.0.0/0"])


def _echo(listener: socket.socket, stop: threading.Event) -> None:
    with selectors.DefaultSelector() as selector, ExitStack() as opened:
        selector.register(listener, selectors.EVENT_READ)
        while not stop.is_set():
            for key, _ in selector.select(0.05):
                peer = key.fileobj
                assert isinstance(peer, socket.socket)
                if peer is listener:
                    client, _ = listener.accept()
                    selector.register(opened.enter_context(client), selectors.EVENT_READ)
                    continue
                data = b""
                with contextlib.suppress(ConnectionError):
                    data = peer.recv(4096)
                    peer.sendall(data)
                if not data:
                    selector.unregister(peer)


def _exchange(client: socket.socket, stop: threading.Event, done: list[int | str]) -> None:
    """Send and receive until told to stop; tells how often that went well, or what ended it."""
    exchanges = 0
    try:
        while not stop.is_set():
            client.sendall(b"x" * 64)
            if not client.recv(4096):
                raise ConnectionError("closed")
            exchanges += 1
    except OSError as error:
        done.append(f"after {exchanges}: {error!r}")
    else:
        done.append(exchanges)


def test_connections_outlast_that_the_table_is_made_anew(lab: Lab) -> None:
    listener = lab.listen(lab.far, "0.0.0.0", PORT)
    namespaces = [lab.sandbox(slot, SOME) for slot in range(3)]
    stop, closing_time, done = threading.Event(), threading.Event(), list[int | str]()
    with ExitStack() as opened:
        clients = []
        for number in range(FLOWS):
            client = make_socket(namespaces[number % 3], socket.SOCK_STREAM)
            clients.append(opened.enter_context(closing(client)))
        echo = threading.Thread(target=_echo, args=(listener, closing_time))
        echo.start()
        threads = list[threading.Thread]()
        try:
            for client in clients:
                client.settimeout(10)
                client.connect(("1.1.1.1", PORT))
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threads.append(threading.Thread(target=_exchange, args=(client, stop, done)))
                threads[-1].start()
            for _ in range(ROUNDS):
                with inside(lab.host):
                    lab.network.setup(dict.fromkeys(range(3), SOME))
                time.sleep(0.02)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            closing_time.set()
            echo.join()
    assert len(done) == FLOWS
    assert all(isinstance(outcome, int) and outcome for outcome in done), done


def test_nothing_always_denied_passes_while_the_table_is_made_anew(lab: Lab) -> None:
    """What the kernel shows last of a new table are the always-denied ranges."""
    far = lab.receive(lab.far, "0.0.0.0", PORT)
    flooding = (
        "import socket,sys\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nwhile True:"
    )
    flooding += "\n try: s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))\n except OSError: pass"
    with ExitStack() as stack:
        for slot in range(2):
            with inside(lab.sandbox(slot, EgressPolicy())):
                flood = subprocess.Popen([sys.executable, "-c", flooding, "10.1.2.3", str(PORT)])
            stack.callback(flood.wait)
            stack.callback(flood.kill)
        client = lab.client(lab.sandboxes[0], socket.SOCK_DGRAM)
        for _ in range(60):
            with inside(lab.host):
                lab.network.setup(dict.fromkeys(range(2), EgressPolicy()))
            time.sleep(0.01)
    # What is allowed arrives, and was sent last.
    client.sendto(b"allowed", ("9.9.9.9", PORT))
    data, _, (destination, _) = read_datagram(far)
    assert (data, destination) == (b"allowed", "9.9.9.9")


def test_what_is_refused_is_told_so_afterwards(lab: Lab) -> None:
    namespace = lab.sandbox(0, SOME)
    with inside(lab.host):
        lab.network.setup({0: SOME})
    assert tcp_outcome(namespace, "9.9.9.9", PORT) == RESET
