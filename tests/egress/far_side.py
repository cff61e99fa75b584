"""What the gateway's tests reach by it: servers that count who connected to what.

They are threads of the test's process with sockets made in another network namespace.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trustme

from internet.namespaces import inside

INGRESS, INGRESS_PORT = "198.18.0.1", 8443
GOOD, OTHER, ATTACKER = "93.184.216.34", "93.184.216.35", "185.199.108.66"
SILENT = "93.184.216.99"
"""Belongs to nobody: packets to it vanish."""
OWN = "203.0.113.1"
"""An address of the gateway's machine."""
SERVER_FIRST = "93.184.216.40"
"""Says hello before the client does, on every port."""
SINK = "93.184.216.41"
"""Accepts connections on 443 and never reads."""
UPSTREAM = "203.0.113.53"
LISTED = "9.9.9.9"
"""A resolver that policies can list; it alone knows `listed.test`."""
RESOLVER = "8.8.8.8"

FAR_ADDRESSES = (GOOD, OTHER, ATTACKER, SERVER_FIRST, SINK, LISTED)

ZONE: dict[str, list[str]] = {
    "good.test": [GOOD],
    "www.good.test": [GOOD],
    "other.test": [OTHER],
    "evil.test": [ATTACKER],
    "private.test": ["10.1.2.3"],
    "loopback.test": ["127.0.0.1"],
    "zero.test": ["0.0.0.0"],
    "metadata.test": ["169.254.169.254"],
    "own.test": [OWN],
    "mixed.test": ["10.1.2.3", GOOD],
    "third.test": ["93.184.216.97", "93.184.216.98", GOOD],
    "dead.test": ["93.184.216.98"],
    "big.test": [f"93.184.217.{n}" for n in range(1, 101)],
    "first.test": [SERVER_FIRST],
    "sink.test": [SINK],
}
LISTED_ZONE = {"listed.test": [OTHER]}
ALIASES = {"alias.test": "hop.test", "hop.test": "good.test", "inward.test": "private.test"}


class FarSide:
    """Servers on the other side of the gateway: HTTP on 80, TLS on 443 and DNS."""

    def __init__(self, namespace: str, gateway_namespace: str) -> None:
        self.contacts: Counter[tuple[str, int]] = Counter()
        self.queries: list[tuple[str, str]] = []
        self.requests: list[tuple[str, bytes]] = []
        """What HTTP servers were sent: their address and the bytes."""
        self.ca = trustme.CA()
        names = [*ZONE, *LISTED_ZONE, *ALIASES, "3000-abc.sandgate.localhost"]
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(self._tls)
        self._closed = threading.Event()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        with inside(namespace):
            for address in (GOOD, OTHER, ATTACKER):
                self._listen(address, 80, self._http)
                self._listen(address, 443, self._https)
                self._listen(address, 81, self._http)
                self._listen(address, 444, self._https)
                self._listen(address, INGRESS_PORT, self._https)
            for port in (22, 80, 443):
                self._listen(SERVER_FIRST, port, self._greet)
            self._listen(SINK, 443, self._never_read)
            for server in (UPSTREAM, LISTED):
                self._listen(server, 53, self._dns_tcp)
                udp = self._keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                udp.bind((server, 53))
                self._start(self._dns_udp, udp, server)
        with inside(gateway_namespace):
            self._listen(INGRESS, INGRESS_PORT, self._https)
            self._listen(OWN, 80, self._http)
            self._listen("127.0.0.1", 80, self._http)

    def close(self) -> None:
        """Stop all servers."""
        self._closed.set()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(2)

    def _keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _listen(self, address: str, port: int, handler: Callable[..., None]) -> None:
        listener = self._keep(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
        self._start(self._accept, listener, address, port, handler)

    def _accept(
        self, listener: socket.socket, address: str, port: int, handler: Callable[..., None]
    ) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.contacts[address, port] += 1

            def serve(connection: socket.socket = connection) -> None:
                connection.settimeout(20)
                with connection, suppress(OSError):
                    handler(connection, address)

            threading.Thread(target=serve, daemon=True).start()

    def _http(self, connection: socket.socket, address: str) -> None:
        """Answers each request with the address and what it was sent; `/bulk/N` with N bytes."""
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = connection.recv(65536)
                if not data:
                    return
                buffer += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            path = head.split(b" ")[1]
            body = b""
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
                    while len(buffer) < size:
                        buffer += connection.recv(65536)
                    body, buffer = buffer[:size], buffer[size:]
            self.requests.append((address, head + b"\r\n\r\n" + body))
            if b"upgrade: websocket" in head.lower() and path == b"/ws":
                connection.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
                    b"Upgrade: websocket\r\n\r\n"
                )
                while data := buffer or connection.recv(65536):
                    buffer = b""
                    connection.sendall(data)
                return
            if path.startswith(b"/bulk/"):
                size = int(path[6:])
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
                block = bytes(1 << 18)
                while size:
                    size -= connection.send(block[: min(size, len(block))])
                continue
            if path == b"/slow":
                time.sleep(0.3)
            if path == b"/chunked":
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                )
                continue
            reply = f"{address} {path.decode()} {len(body)}".encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply)
            connection.sendall(head + reply)

    def _https(self, connection: socket.socket, address: str) -> None:
        """Says its address, then echoes until the end of input, then says goodbye."""
        with self._tls.wrap_socket(connection, server_side=True) as tls:
            tls.sendall(address.encode())
            while data := tls.recv(65536):
                tls.sendall(data)

    @staticmethod
    def _greet(connection: socket.socket, address: str) -> None:
        connection.sendall(b"220 hello\r\n")
        received = b""
        while data := connection.recv(65536):
            received += data
        connection.sendall(b"bye %d\r\n" % len(received))

    def _never_read(self, connection: socket.socket, address: str) -> None:
        self._closed.wait(20)

    def _answer(self, wire: bytes, server: str, udp: bool) -> bytes:
        zone = ZONE | LISTED_ZONE if server == LISTED else ZONE
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.queries.append((name, dns.rdatatype.to_text(question.rdtype)))
        response = dns.message.make_response(query, recursion_available=True)
        owner = name
        while owner in ALIASES:
            target = ALIASES[owner]
            response.answer.append(
                dns.rrset.from_text(owner + ".", 60, "IN", "CNAME", target + ".")
            )
            owner = target
        if owner in zone and question.rdtype == dns.rdatatype.A:
            response.answer.append(dns.rrset.from_text(owner + ".", 60, "IN", "A", *zone[owner]))
        elif question.rdtype == dns.rdatatype.TXT:
            response.answer.append(dns.rrset.from_text(owner + ".", 60, "IN", "TXT", '"text"'))
        elif owner not in zone:
            response.set_rcode(dns.rcode.NXDOMAIN)
        answer = response.to_wire()
        if udp and len(answer) > 512:
            response.answer.clear()
            response.flags |= dns.flags.TC
            answer = response.to_wire()
        return answer

    def _dns_udp(self, sock: socket.socket, server: str) -> None:
        while True:
            try:
                data, source = sock.recvfrom(4096)
            except OSError:
                return
            with suppress(OSError, dns.exception.DNSException):
                sock.sendto(self._answer(data, server, True), source)

    def _dns_tcp(self, connection: socket.socket, address: str) -> None:
        while size := connection.recv(2, socket.MSG_WAITALL):
            data = connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL)
            answer = self._answer(data, address, False)
            connection.sendall(len(answer).to_bytes(2, "big") + answer)
