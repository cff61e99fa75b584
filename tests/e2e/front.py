"""Raw requests to the node's HTTPS entry, with any Host."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """A response, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.text)


def domain() -> tuple[str, int]:
    """The node's domain and port, from what `sandgate env` exports."""
    name, _, port = os.environ["E2B_DOMAIN"].partition(":")
    return name, int(port or 443)


def connect() -> ssl.SSLSocket:
    """A TLS connection to the entry, verified, that shows the name of the domain itself."""
    name, port = domain()
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    plain = socket.create_connection(("127.0.0.1", port), timeout=15)
    return context.wrap_socket(plain, server_hostname=f"sandbox.{name}")


def ask(
    host: str,
    path: str = "/",
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Reply:
    """One request with exactly this Host header."""
    connection = http.client.HTTPConnection("unused")
    connection.sock = connect()
    try:
        connection.request(method, path, body, {"Host": host, **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read().decode())
    finally:
        connection.close()


def api(method: str, path: str, body: Any = None, key: str | None = None) -> Reply:
    """A request to the API, with the node's key unless another is given."""
    name, port = domain()
    host = f"api.{name}" if port == 443 else f"api.{name}:{port}"
    headers = {"X-API-KEY": os.environ["E2B_API_KEY"] if key is None else key}
    if body is not None:
        headers["Content-Type"] = "application/json"
    data = None if body is None else json.dumps(body).encode()
    return ask(host, path, method, {k: v for k, v in headers.items() if v}, data)
