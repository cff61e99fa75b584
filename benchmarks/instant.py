"""What the client costs by itself: the official SDK with a server that knows its answers already.

The same TLS, protocols and certificate as the node's, by the same HAProxy; nothing behind it.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time

from benchmarks.place import Place

_ADDRESS, _PORT = "127.0.0.1", 8443
_UP_SECONDS = 10.0
_BODY_SECONDS = 10
_EVENTS: tuple[dict[str, object], ...] = (
    {"start": {"pid": 2}},
    {"data": {"stdout": base64.b64encode(b"hello\n").decode()}},
    {"end": {"exited": True, "status": "exit status 0"}},
)


def start(place: Place) -> str:
    """Start the server in the node's namespace; the domain by which an SDK uses it."""
    domain = f"{os.environ['E2B_DOMAIN'].partition(':')[0]}:{_PORT}"
    directory = place.scratch
    certificate = place.node.data_dir / "certificates" / "chain.pem"
    certificates = directory / "instant.list"
    # As the node has it: HTTP/2 for the API, HTTP/1.1 for commands.
    host = domain.partition(":")[0]
    certificates.write_text(
        f"{certificate} [alpn h2,http/1.1] api.{host}\n{certificate} [alpn http/1.1] *.{host}\n"
    )
    # A name of its own for each, so that each first command makes a connection.
    sandbox = {"sandboxID": "i%[rand(1000000000)]", "templateID": "base", "clientID": "instant"}
    sandbox |= {"envdVersion": "0.6.13", "alias": "base", "domain": domain, "envdAccessToken": "x"}
    (directory / "instant.json").write_text(json.dumps(sandbox))
    (directory / "instant.frames").write_bytes(_frames())
    config = directory / "instant.cfg"
    config.write_text(
        "global\n  maxconn 1000\ndefaults\n  mode http\n  timeout client 1m\n  timeout server 1m\n"
        f"  timeout connect 5s\nfrontend f\n  bind {_ADDRESS}:{_PORT} ssl crt-list {certificates}\n"
        # An answer before the body's end would close the connection while the client still sends.
        f"  http-request wait-for-body time {_BODY_SECONDS}s\n"
        "  http-request return status 200 content-type application/connect+json file "
        f"{directory}/instant.frames if {{ path_beg /process.Process/ }}\n"
        "  http-request return status 201 content-type application/json lf-file "
        f"{directory}/instant.json if METH_POST\n"
        "  http-request return status 204\n"
    )
    place.start(place.namespace, "haproxy", "-db", "-f", str(config))
    until = time.monotonic() + _UP_SECONDS
    while True:
        try:
            socket.create_connection((_ADDRESS, _PORT)).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return domain


def _frames() -> bytes:
    """The answer to `process.Process/Start`."""
    messages = [(0, json.dumps({"event": event}).encode()) for event in _EVENTS]
    messages.append((2, b"{}"))
    return b"".join(
        flags.to_bytes(1, "big") + len(message).to_bytes(4, "big") + message
        for flags, message in messages
    )
