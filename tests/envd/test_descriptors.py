from __future__ import annotations

import resource
import socket
import time
from pathlib import Path

import httpx
import pytest

from envd.harness import running


def test_a_daemon_that_root_inside_left_no_descriptors_tries_again_now_and_then(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path) as daemon:
        url = httpx.URL(daemon.url)
        usual = resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        with socket.create_connection((url.host, url.port), 5) as waiting:
            time.sleep(1.5)
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, usual)
            waiting.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert waiting.recv(64).startswith(b"HTTP/1.0 204")
    assert 1 <= capfd.readouterr().err.count("out of system resource") < 10
