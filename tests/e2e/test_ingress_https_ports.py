"""`https_ports`: servers in a sandbox that speak HTTPS themselves, through their URLs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import requests
import trustme
from e2b import Sandbox

from internet.node import Node

_OPEN, _LOOPBACK, _PLAIN = 8443, 9443, 3000

_SERVER = """
import http.server, ssl, sys
address, port, certificate = sys.argv[1], int(sys.argv[2]), sys.argv[3]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"{self.headers['Host']} {self.request.version()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer((address, port), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.serve_forever()
"""


@pytest.fixture(scope="module")
def served(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sandbox], None]:
    """Starts servers with a certificate for another name that nobody trusts."""
    path = tmp_path_factory.mktemp("certificate") / "own.pem"
    trustme.CA().issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(path)

    def serve(sandbox: Sandbox) -> None:
        sandbox.files.write("/home/user/server.py", _SERVER)
        sandbox.files.write("/home/user/own.pem", path.read_text())
        for address, port in (("0.0.0.0", _OPEN), ("127.0.0.1", _LOOPBACK)):
            command = f"python3 server.py {address} {port} own.pem"
            sandbox.commands.run(command, background=True, timeout=0)
        sandbox.commands.run(f"python3 -m http.server {_PLAIN}", background=True, timeout=0)
        retry = "--retry 100 --retry-delay 0 --retry-max-time 10 --retry-connrefused"
        for port in (_OPEN, _LOOPBACK):
            sandbox.commands.run(f"curl -ksS {retry} -o /dev/null https://127.0.0.1:{port}/")

    return serve


def _get(sandbox: Sandbox, port: int) -> requests.Response:
    headers = {}
    if sandbox.traffic_access_token:
        headers["e2b-traffic-access-token"] = sandbox.traffic_access_token
    return requests.get(f"https://{sandbox.get_host(port)}", headers=headers, timeout=15)


def test_a_server_with_tls_of_its_own_is_reached_by_its_url(
    node: Node, sandboxes: Callable[..., Sandbox], served: Callable[[Sandbox], None]
) -> None:
    sandbox = sandboxes(
        network={"https_ports": [_OPEN, _LOOPBACK], "allow_public_traffic": False}, timeout=300
    )
    served(sandbox)
    for port in (_OPEN, _LOOPBACK):
        assert requests.get(f"https://{sandbox.get_host(port)}", timeout=15).status_code == 403
        assert _get(sandbox, port).text == f"{sandbox.get_host(port)} TLSv1.3"
    assert "Directory listing" in _get(sandbox, _PLAIN).text
    network = sandbox.get_info().network
    assert network is not None and network["https_ports"] == [_OPEN, _LOOPBACK]


def test_it_is_so_after_a_change_of_policy_a_pause_and_in_a_fork(
    node: Node, sandboxes: Callable[..., Sandbox], served: Callable[[Sandbox], None]
) -> None:
    masked = {"https_ports": [_OPEN], "mask_request_host": "localhost:${PORT}"}
    sandbox = sandboxes(
        network=masked, lifecycle={"on_timeout": "pause", "auto_resume": True}, timeout=300
    )
    served(sandbox)
    expected = f"localhost:{_OPEN} TLSv1.3"
    assert _get(sandbox, _OPEN).text == expected
    sandbox.update_network({})
    assert _get(sandbox, _OPEN).text == expected
    sandbox.pause()
    assert _get(sandbox, _OPEN).text == expected, "the request wakes it"
    [fork] = sandbox.fork()
    assert isinstance(fork, Sandbox)
    try:
        served(fork)
        assert _get(fork, _OPEN).text == expected
    finally:
        fork.kill()


def test_without_it_a_server_with_tls_gets_plain_http(
    node: Node, sandboxes: Callable[..., Sandbox], served: Callable[[Sandbox], None]
) -> None:
    sandbox = sandboxes(timeout=300)
    served(sandbox)
    assert _get(sandbox, _OPEN).status_code == 502


def test_a_haproxy_that_takes_over_knows_them(
    node: Node, sandboxes: Callable[..., Sandbox], served: Callable[[Sandbox], None]
) -> None:
    sandbox = sandboxes(network={"https_ports": [_OPEN]}, timeout=300)
    served(sandbox)
    before = _haproxy(node)
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 15
    while True:
        assert time.monotonic() < deadline
        with suppress(requests.RequestException):
            reply = _get(sandbox, _OPEN)
            if reply.status_code == 200:
                break
        time.sleep(0.05)
    assert reply.text == f"{sandbox.get_host(_OPEN)} TLSv1.3"
    assert _haproxy(node) != before


def _haproxy(node: Node) -> int:
    """The process; there is one, since HAProxy runs without a master."""
    names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in node.processes()}
    [found] = [pid for pid, name in names.items() if name == "haproxy"]
    return found
