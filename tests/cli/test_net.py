"""`sandgate net`: what it prints."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from sandgate.cli.main import main
from sandgate.cli.net import readable

ROW: dict[str, Any] = {
    "time": "2026-01-02T03:04:05.678000Z",
    "protocol": "tls",
    "destination": "192.0.2.1",
    "port": 443,
    "name": "a.test",
    "verdict": "deny",
    "reason": "denied_address",
    "rule": "0.0.0.0/0",
    "reported": False,
    "count": 1,
    "bytesSent": 0,
    "bytesReceived": 0,
    "durationMs": 0,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "deny    tls   a.test (192.0.2.1:443)  denied_address  by 0.0.0.0/0"),
        ({"name": None, "rule": None}, "deny    tls   192.0.2.1:443  denied_address"),
        ({"name": None, "port": 0}, "deny    tls   192.0.2.1  denied_address  by 0.0.0.0/0"),
        (
            {"count": 7, "reported": True, "verdict": "allow"},
            "report  tls   a.test (192.0.2.1:443)  denied_address  by 0.0.0.0/0  x7",
        ),
        (
            {"count": 0, "bytesSent": 12, "bytesReceived": 3_400_000, "durationMs": 1500},
            "deny    tls   a.test (192.0.2.1:443)  denied_address  by 0.0.0.0/0  "
            "ended: 12 B sent, 3.4 MB received in 1.5 s",
        ),
        (
            {"name": "a\x1b[2J\n"},
            "deny    tls   a\\x1b[2J\\x0a (192.0.2.1:443)  denied_address  by 0.0.0.0/0",
        ),
    ],
)
def test_a_decision_is_a_line(changes: dict[str, Any], expected: str) -> None:
    line = readable({**ROW, **changes})
    assert line[2] == ":" and line.partition("  ")[2] == expected


@pytest.mark.parametrize("command", ["tail", "suggest", "report"])
def test_without_a_node_it_says_so(
    command: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDGATE_DATA_DIR", str(tmp_path))
    state = ["on"] if command == "report" else []
    done = CliRunner().invoke(main, ["net", command, "i123", *state])
    assert done.exit_code == 3 and "sandgate up" in done.output
