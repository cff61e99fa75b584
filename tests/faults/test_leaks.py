"""Thousands of sandboxes come and go, and nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path

import pytest

from faults.conftest import Client, Killer
from faults.machine import node_groups
from internet import namespaces
from internet.node import Node

_SETTLE_SECONDS = 30.0
_GROWTH = 1.05


def _belongings(node: Node) -> dict[str, int]:
    """What the node has of the machine, counted by kind."""
    assert node.namespace is not None
    launcher = Killer(node).pids()["launcher"]
    in_node = ("ip", "netns", "exec", node.namespace)
    table = json.loads(namespaces.run(*in_node, "nft", "-j", "list", "ruleset"))["nftables"]
    links = namespaces.run("ip", "-n", node.namespace, "-o", "link").splitlines()
    groups = [name for path in node_groups(node.node_id) for name in os.listdir(path)]
    counts = {
        "processes": len(node.processes()),
        "mounts": len(Path(f"/proc/{launcher}/mountinfo").read_text().splitlines()),
        "links": sum(": sg" in line for line in links),
        "groups": sum(re.fullmatch(r"s\d+", name) is not None for name in groups),
        "chains and rules": sum("set" not in item for item in table),
        "elements": sum(len(item["set"].get("elem", ())) for item in table if "set" in item),
        "disks": sum(1 for _ in (node.data_dir / "disks").rglob("*.img")),
        "cells": sum(1 for _ in (node.data_dir / "cells").iterdir()),
    }
    for name, pid in Killer(node).pids().items():
        counts[f"descriptors of {name}"] = _descriptors(pid)
    return counts


def _descriptors(pid: int) -> int:
    """Without user namespaces, two of which the launcher keeps for each slot it ever used."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += not os.readlink(path).startswith("user:")
    return found


def _memory(node: Node) -> dict[str, int]:
    """KiB that each component has for itself."""
    found = {}
    for name, pid in Killer(node).pids().items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[name] = sum(map(int, re.findall(r"Private_\w+:\s+(\d+)", rollup)))
    return found


def _excess(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {
        kind: (before.get(kind, 0), count)
        for kind, count in after.items()
        if count > before.get(kind, 0)
    }


def _cycle(node: Node, count: int) -> None:
    """By a client that is gone afterwards, with the connections that it kept open."""
    client = Client(node)
    try:
        assert client("cycle", count) == count
    finally:
        client.close()


def _no_leak(node: Node, *, warm: int, cycles: int) -> dict[str, float]:
    """Returns the growth of memory, as a factor by component."""
    _cycle(node, warm)
    time.sleep(4)  # slots rest, and the pool fills up
    before, memory = _belongings(node), _memory(node)
    _cycle(node, cycles)
    end = time.monotonic() + _SETTLE_SECONDS
    while excess := _excess(before, _belongings(node)):
        assert time.monotonic() < end, f"more than before (before, after): {excess}"
        time.sleep(0.5)
    return {name: used / memory[name] for name, used in _memory(node).items()}


@pytest.mark.timeout(180)
def test_sandboxes_that_come_and_go_leave_nothing(node: Node) -> None:
    _no_leak(node, warm=24, cycles=48)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_sandboxes_leave_nothing(node: Node) -> None:
    growth = _no_leak(node, warm=1000, cycles=10_000)
    print(f"memory afterwards / before: {growth}")
    assert max(growth.values()) < _GROWTH, growth
