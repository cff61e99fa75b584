"""A web application that the ingress tests run inside a sandbox. Standard library only.

`python3 app.py PORT [ADDRESS]`. `/`: what it saw, as JSON. `/bytes/N`: N bytes. `/upload`: how many
bytes came. `/arrived`: how many bytes of an upload under way have come. `/events`: one server-sent
event, and a second one after a request to `/go`. `/echo`: WebSocket echo.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class App(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    arrived = 0
    go = threading.Event()

    def do_GET(self) -> None:
        """Any path above but `/upload`."""
        if self.path.startswith("/bytes/"):
            self._reply(b"x" * int(self.path[7:]))
        elif self.path == "/arrived":
            self._reply(str(App.arrived).encode())
        elif self.path == "/events":
            self._events()
        elif self.path == "/go":
            self.go.set()
            self._reply(b"")
        elif self.path == "/echo":
            self._websocket()
        else:
            seen = {"method": self.command, "path": self.path, "headers": self.headers.items()}
            self._reply(json.dumps(seen).encode())

    def do_POST(self) -> None:
        """`/upload`."""
        App.arrived = 0
        if "chunked" in (self.headers["transfer-encoding"] or ""):
            while size := int(self.rfile.readline(), 16):
                self.rfile.read(size + 2)
                App.arrived += size
            self.rfile.readline()
        else:
            while App.arrived < int(self.headers["content-length"]):
                App.arrived += len(self.rfile.read1(1 << 16))
        self._reply(str(App.arrived).encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: first\n\n")
        self.go.wait(20)
        self.wfile.write(b"data: second\n\n")
        self.close_connection = True

    def _websocket(self) -> None:
        key = self.headers["sec-websocket-key"] + _GUID
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while len(head := self.rfile.read(2)) == 2:
            length = head[1] & 127
            if length == 126:
                (length,) = struct.unpack("!H", self.rfile.read(2))
            mask = self.rfile.read(4)
            data = bytes(b ^ mask[i % 4] for i, b in enumerate(self.rfile.read(length)))
            size = bytes([length]) if length < 126 else b"\x7e" + struct.pack("!H", length)
            self.wfile.write(head[:1] + size + data)
            if head[0] & 15 == 8:
                return


if __name__ == "__main__":
    address = sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0"
    ThreadingHTTPServer((address, int(sys.argv[1])), App).serve_forever()
