"""A client that vanishes without a word, while a command has more to say than fits anywhere."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

from e2e import front
from e2e.box import until
from internet import namespaces

_RETRIES = Path("/proc/sys/net/ipv4/tcp_retries2")  # of the namespace that the tests live in
_TALKER = "i=0; while :; do head -c 65536 /dev/zero; i=$((i + 1)); echo $i > /tmp/count; done"


@pytest.fixture
def impatient(node: object) -> Iterator[None]:
    """The kernel gives a peer up after seconds instead of a quarter of an hour."""
    before = _RETRIES.read_text()
    _RETRIES.write_text("3")
    yield
    _RETRIES.write_text(before)


@contextlib.contextmanager
def dead(port: int) -> Iterator[None]:
    """Nothing that is sent from this port on the loopback arrives."""
    namespaces.run("nft", "add", "table", "ip", "dead")
    try:
        hook = "{ type filter hook input priority -400 ; }"
        namespaces.run("nft", "add", "chain", "ip", "dead", "input", hook)
        namespaces.run(*f"nft add rule ip dead input tcp sport {port} drop".split())
        yield
    finally:
        namespaces.run("nft", "delete", "table", "ip", "dead")


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_command_goes_on_when_its_client_is_dead(
    impatient: None, sandboxes: Callable[..., Sandbox]
) -> None:
    sandbox = sandboxes()
    name = f"49983-{sandbox.sandbox_id}.{front.domain()[0]}"
    request = {"process": {"cmd": "/bin/sh", "args": ["-c", _TALKER]}, "stdin": False}
    payload = json.dumps(request).encode()
    body = struct.pack(">BI", 0, len(payload)) + payload
    token = sandbox.connection_config.sandbox_headers["X-Access-Token"]
    head = (
        f"POST /process.Process/Start HTTP/1.1\r\nHost: {name}\r\nX-Access-Token: {token}\r\n"
        f"Content-Type: application/connect+json\r\nContent-Length: {len(body)}\r\n"
        f"Authorization: Basic {base64.b64encode(b'user:').decode()}\r\n\r\n"
    )

    def count() -> int:
        text = sandbox.files.read("/tmp/count") if sandbox.files.exists("/tmp/count") else ""
        return int(text or "0")

    def stands_still() -> bool:
        before = count()
        time.sleep(0.5)
        return 0 < before == count()

    with contextlib.closing(front.connect()) as client:
        client.sendall(head.encode() + body)  # and nothing is ever read
        until(stands_still, 20)
        blocked = count()
        with dead(client.getsockname()[1]):
            until(lambda: count() > blocked + 10, 40)
