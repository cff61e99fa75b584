"""A real node answers what its OpenAPI document says, whatever it is asked: schemathesis.

It follows links, finds sandboxes and ends them: so it gets a node of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import front
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

_SECONDS = 10
"""Of each run."""
_CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)
_CONFIGURATION = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501]
[parameters]
{parameters}
"""


@pytest.fixture(scope="module")
def judged(world: Internet) -> Iterator[Node]:
    """The node that is judged."""
    limits = {"cpu_count": 1, "memory_mb": 256, "disk_mb": 256, "max_sandboxes": 8}
    with Node(world.attach("judged"), {"upstream_dns": [UPSTREAM_DNS], **limits}) as node:
        yield node
        left = node.stop()
    assert not left, "\n".join(left)


@pytest.fixture
def there(judged: Node, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The test runs where that node is, with the variables for it."""
    for key, value in judged.environment().items():
        monkeypatch.setenv(key, value)
    assert judged.namespace is not None
    with namespaces.inside(judged.namespace):
        yield
        for sandbox in front.api("GET", "/v2/sandboxes").json:
            front.api("DELETE", f"/sandboxes/{sandbox['sandboxID']}")


def judge(directory: Path, parameters: str, *options: str) -> None:
    """One run against the node that the environment points at."""
    configuration = directory / "schemathesis.toml"
    configuration.write_text(_CONFIGURATION.format(parameters=parameters))
    done = subprocess.run(
        [
            *(str(Path(sys.executable).parent / "schemathesis"), "--config-file"),
            *(str(configuration), "run", f"https://api.{os.environ['E2B_DOMAIN']}/openapi.json"),
            *("--header", f"X-API-KEY: {os.environ['E2B_API_KEY']}"),
            *("--tls-verify", os.environ["SSL_CERT_FILE"], "--checks", ",".join(_CHECKS)),
            *("--max-time", str(_SECONDS), "--continue-on-failure", "--warnings", "off"),
            *("--no-color", *options),
        ],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=3 * _SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert "Tested: 0" not in done.stdout and "Tested:" in done.stdout, done.stdout


@pytest.mark.timeout(90)
def test_every_operation_keeps_to_the_document(there: None, tmp_path: Path) -> None:
    judge(tmp_path, "")


@pytest.mark.timeout(90)
def test_every_operation_on_a_sandbox_keeps_to_the_document(there: None, tmp_path: Path) -> None:
    made = front.api("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 600}).json
    sandbox_id = made["sandboxID"]
    judge(
        tmp_path,
        f'sandbox_id = "{sandbox_id}"',
        *("--include-path-regex", "sandbox_id", "--exclude-method", "DELETE"),
        *("--exclude-path-regex", "/timeout$"),  # it may end the sandbox
    )
    assert front.api("GET", f"/sandboxes/{sandbox_id}").status == 200, "it was there all the time"
