"""A real node answers what its OpenAPI document says, whatever it is asked: schemathesis."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2b import Sandbox

pytestmark = pytest.mark.long  # by links it finds the sandboxes of other tests, and ends them

_SECONDS = 15
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


@pytest.fixture
def nothing_stays(node: object) -> Iterator[None]:
    """Whatever was made is ended; what other tests have is theirs."""
    before = {sandbox.sandbox_id for sandbox in Sandbox.list().next_items()}
    yield
    for sandbox in Sandbox.list().next_items():
        if sandbox.sandbox_id not in before:
            Sandbox.kill(sandbox.sandbox_id)


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
def test_every_operation_keeps_to_the_document(nothing_stays: None, tmp_path: Path) -> None:
    judge(tmp_path, "")


@pytest.mark.timeout(90)
def test_every_operation_on_a_sandbox_keeps_to_the_document(
    nothing_stays: None, sandboxes: Callable[..., Sandbox], tmp_path: Path
) -> None:
    sandbox = sandboxes(timeout=600)
    judge(
        tmp_path,
        f'sandbox_id = "{sandbox.sandbox_id}"',
        *("--include-path-regex", "sandbox_id", "--exclude-method", "DELETE"),
        *("--exclude-path-regex", "/timeout$"),  # it may end the sandbox
    )
    assert sandbox.get_info().sandbox_id == sandbox.sandbox_id, "it was there all the time"
