"""What an upgrade in place costs those who use the node."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path

import pytest

from faults.conftest import Client, Killer, processor_seconds, until
from internet.node import Node

_HERE = Path(__file__).parent
_ROUNDS = 7
_ECHO = "1.1.1.1"
_NAME = "google.com"
_POLICY = {"allow_out": [_ECHO, _NAME], "deny_out": ["0.0.0.0/0"]}
_LONGEST = {"API": 20.0, "URL": 10.0, _NAME: 20.0, _ECHO: 10.0, "stream": 10.0}
"""Seconds; generous, for a machine that others use too. What is printed is what is documented."""


def _upgrade(node: Node, killer: Killer) -> dict[str, float]:
    """What `sandgate up` of another version does; the processor time that each start took."""
    record = json.loads((node.data_dir / "run" / "node.json").read_text())
    before = killer.pids()
    os.kill(record["supervisor"]["pid"], signal.SIGUSR2)
    node.bury()
    node.start()
    after = killer.pids()
    assert not set(before.values()) & set(after.values())
    return {name: processor_seconds(pid) for name, pid in after.items()}


def _longest_gap(times: list[float], since: float) -> float:
    late = [moment for moment in times if moment > since]
    return max(b - a for a, b in zip([since, *late], late, strict=False))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_an_upgrade_in_place_is_noticed_for_so_long(
    client: Client, killer: Killer, node: Node
) -> None:
    program = (_HERE / "inside.py").read_text()
    for label in ("count", "hold", "reach"):
        client("create", label, program, {} if label == "count" else _POLICY)
    client("start", "count", "count", "/home/user/numbers")
    client("start", "hold", "hold", _ECHO, "8080", "/home/user/held")
    client("start", "reach", "reach", "/home/user/reached", _NAME, _ECHO)
    gaps: dict[str, list[float]] = {}
    starts: list[dict[str, float]] = []
    for _ in range(_ROUNDS):
        client("watch", "count")
        time.sleep(1)
        begun = time.monotonic()
        starts.append(_upgrade(node, killer))
        time.sleep(2)
        found = client("watched", "count")
        for line in client("read", "reach", "/home/user/reached").splitlines():
            moment, host = line.split()
            found.setdefault(host, []).append(float(moment))
        for what, times in found.items():
            gaps.setdefault(what, []).append(_longest_gap(times, begun))
        assert client("stream", "count")["broken"] is None
    numbers = [int(line) for line in client("stream", "count")["text"].split("\n")[:-1]]
    assert numbers == list(range(len(numbers)))
    held = client("read", "hold", "/home/user/held")
    assert "lost" not in held and len(held.splitlines()) > 100
    assert set(gaps) == set(_LONGEST)
    for what, seconds in gaps.items():
        median, most = statistics.median(seconds), max(seconds)
        print(f"{what}: nothing for {median:.2f} s at the median, {most:.2f} s at most")
        assert most < _LONGEST[what]
    for name in starts[0]:
        took = statistics.median(start[name] for start in starts)
        print(f"{name}: {took:.2f} s of a processor until it was ready")
    for label in ("count", "hold", "reach"):
        client("kill", label)
    until(lambda: client("facts") == {}, 10, "they are gone")
