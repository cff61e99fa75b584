"""Where it is measured: a node of its own in network namespaces of its own, and a server to reach.

sandboxes -- the node's namespace -- `server` (203.0.113.10: TLS on 443, HTTP on 80 and 8080)
                    |
                  `bare` (a client without any gate, for what others do)
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from internet import UPSTREAM_DNS, Internet, Record, namespaces
from internet.node import Node

SERVER = "203.0.113.10"
NAME = "bench.example.com"
GATE = "192.0.2.1"
"""The node's namespace, as `bare` reaches it."""

_BARE = "192.0.2.2"
_TO_SERVER, _SERVER_LINK = "192.0.2.5", "192.0.2.6"
_LIMITS = {"cpu_count": 2, "memory_mb": 4096, "disk_mb": 1024, "max_sandboxes": 1200}
_DEFAULTS = {"pool_size": None}
"""Of tests it is small."""
_RATE = {"max_new_connections": 2000}
"""What is measured is the gate, not the limit."""


@dataclass(slots=True)
class Place:
    """A node that runs, and what is around it. This process is in the node's namespace."""

    node: Node
    namespace: str
    server: str
    bare: str
    scratch: Path

    def start(self, namespace: str, *command: str) -> subprocess.Popen[bytes]:
        """Run a program in a namespace until the block of :func:`place` ends."""
        log = (self.scratch / "programs.log").open("ab")
        with log, namespaces.inside(namespace):
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdout=log, stderr=log
            )
        _started.append(process)
        return process


_started: list[subprocess.Popen[bytes]] = []


@contextmanager
def place() -> Iterator[Place]:
    """Bring everything up; to be called before the process has a second thread."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandgate-bench-")))
        scratch.chmod(0o755)
        internet = stack.enter_context(Internet())
        namespace = internet.attach("bench")
        internet.set_name(NAME, Record(addresses=(SERVER,), ttl=300))
        server, bare = (f"{namespace}-{label}" for label in ("server", "bare"))
        for other in (server, bare):
            namespaces.create(other)
            stack.callback(namespaces.delete, other)
        _link(namespace, server, "far", _TO_SERVER, _SERVER_LINK)
        namespaces.run("ip", "-n", server, "address", "add", f"{SERVER}/32", "dev", "lo")
        namespaces.run("ip", "-n", namespace, "route", "add", SERVER, "via", _SERVER_LINK)
        _link(namespace, bare, "near", GATE, _BARE)
        stack.callback(_end_programs)
        namespaces.join(namespace)
        stack.callback(namespaces.join, f"/proc/self/fd/{home}")
        settings = {"upstream_dns": [UPSTREAM_DNS], **_LIMITS, **_RATE, **_DEFAULTS}
        node = stack.enter_context(Node(None, settings, authority=internet.ca_file))
        os.environ.update(node.environment())
        here = Place(node, namespace, server, bare, scratch)
        _serve(here)
        yield here


def _link(namespace: str, other: str, name: str, near: str, far: str) -> None:
    """Join two namespaces; the other one's way to everywhere is this link."""
    ours, theirs = f"b{name}0", f"b{name}1"
    namespaces.run(
        *("ip", "link", "add", ours, "netns", namespace, "type", "veth"),
        *("peer", "name", theirs, "netns", other),
    )
    for where, link, address in ((namespace, ours, near), (other, theirs, far)):
        namespaces.run("ip", "-n", where, "address", "add", f"{address}/30", "dev", link)
        namespaces.run("ip", "-n", where, "link", "set", link, "up")
    namespaces.run("ip", "-n", other, "route", "add", "default", "via", near)


def _serve(here: Place) -> None:
    """TLS on 443 and small answers by HAProxy, large ones by a program that uses sendfile."""
    key, certificate = here.scratch / "server.key", here.scratch / "server.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", f"/CN={NAME}"),
            *("-addext", f"subjectAltName=DNS:{NAME}"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    both = here.scratch / "server.pem"
    both.write_text(certificate.read_text() + key.read_text())
    config = here.scratch / "server.cfg"
    config.write_text(
        "global\n  maxconn 4000\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n"
        "  timeout connect 5s\nfrontend f\n"
        f"  bind {SERVER}:443 ssl crt {both}\n  bind {SERVER}:8443 ssl crt {both}\n"
        "  http-request return status 200 content-type text/plain string ok\n"
    )
    here.start(here.server, "haproxy", "-db", "-f", str(config))
    program = str(Path(__file__).parent / "programs.py")
    here.start(here.server, sys.executable, program, "serve", SERVER, "80", "8080")
    time.sleep(1)


def _end_programs() -> None:
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()
