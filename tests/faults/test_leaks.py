"""Thousands of sandboxes come and go, and nothing of them stays."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import site
import socket
import sys
import time
import venv
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

import sandgate
from faults.conftest import Client, Killer
from faults.machine import node_groups
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node

_SETTLE_SECONDS = 90.0
"""What the kernel counts of a sandbox it forgets after a minute."""
_GROWTH = 1.05
_PER_CLIENT = 500


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
        "routes": _routes(node),
    }
    for name, pid in Killer(node).pids().items():
        counts[f"descriptors of {name}"] = _descriptors(pid)
    return counts


def _routes(node: Node) -> int:
    """Rows in HAProxy's map, with that which says that it is filled."""

    def ask(command: str) -> list[str]:
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(node.data_dir / "run" / "haproxy.sock"))
            admin.sendall(f"{command}\n".encode())
            return b"".join(iter(lambda: admin.recv(65536), b"")).decode().splitlines()

    (reference,) = (line.split()[0] for line in ask("show map") if "routes" in line)
    return sum(bool(line.strip()) for line in ask(f"show map #{reference}"))


def _descriptors(pid: int) -> int:
    """Without user namespaces, two of which the launcher keeps for each slot it ever used."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += not os.readlink(path).startswith("user:")
    return found


def _memory(node: Node) -> dict[str, int]:
    """KiB that each component has allocated.

    Not what it has for itself: the launcher shares its pages with the process that sandboxes are
    forked from, until it writes to them.
    """
    found = {}
    for name, pid in Killer(node).pids().items():
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        found[name] = sum(map(int, re.findall(r"^Anonymous:\s+(\d+)", rollup, re.MULTILINE)))
    return found


def _excess(before: dict[str, int], after: dict[str, int]) -> dict[str, tuple[int, int]]:
    return {
        kind: (before.get(kind, 0), count)
        for kind, count in after.items()
        if count > before.get(kind, 0)
    }


def _cycle(node: Node, count: int) -> None:
    """By clients one after the other, each gone then with the connections that it kept open: how
    many are open at once is no matter of how many sandboxes there were."""
    for done in range(0, count, _PER_CLIENT):
        client = Client(node)
        try:
            client("cycle", min(_PER_CLIENT, count - done))
        finally:
            client.close()


def _no_leak(node: Node, *, warm: int, marks: Sequence[int]) -> list[dict[str, int]]:
    """Returns the memory of each component after `warm` cycles, and after `marks` more."""
    _cycle(node, warm)
    time.sleep(4)  # slots rest, and the pool fills up
    before, memory, pids = _belongings(node), [_memory(node)], Killer(node).pids()
    for done, mark in pairwise((0, *marks)):
        _cycle(node, mark - done)
        memory.append(_memory(node))
    _settle(node, before)
    assert Killer(node).pids() == pids, "one was started again"
    return [*memory[:-1], _memory(node)]


def _settle(node: Node, before: dict[str, int]) -> None:
    end = time.monotonic() + _SETTLE_SECONDS
    while excess := _excess(before, _belongings(node)):
        assert time.monotonic() < end, f"more than before (before, after): {excess}"
        time.sleep(0.5)


@pytest.mark.timeout(180)
def test_sandboxes_that_come_and_go_leave_nothing(node: Node) -> None:
    _no_leak(node, warm=24, marks=[48])


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_sandboxes_leave_nothing(node: Node) -> None:
    _check_growth(_no_leak(node, warm=1000, marks=[1000, 2000, 4000, 7000, 10_000]))


def _check_growth(memory: Sequence[dict[str, int]]) -> None:
    """Of the last over the first; those in between are printed, to see whether it levels off."""
    before, after = memory[0], memory[-1]
    for name, used in after.items():
        growth = (used / before[name] - 1) * 100
        print(f"{name}: {', '.join(str(each[name]) for each in memory)} KiB ({growth:+.1f} %)")
    assert all(used < before[name] * _GROWTH for name, used in after.items()), (before, after)


_RATE = 60.0
"""A day takes 24 minutes. Faster, and the node's patience would be too short for a busy machine."""
_TURNS = 12
_TURN_SECONDS = 86_400 / _RATE / _TURNS
_WARM_TURNS = 1
"""Before them, allocators and caches still grow to what they need at most."""


@pytest.fixture
def fast_node(world: Internet) -> Iterator[Node]:
    """Whose time goes faster: it runs from a copy of the program, in an environment that has a
    module for it. The program itself is as it always is."""
    settings = {"upstream_dns": [UPSTREAM_DNS], "cpu_count": 1, "memory_mb": 256, "disk_mb": 128}
    node = Node(world.attach("fast"), settings, authority=world.ca_file)
    copy = node.directory / "checkout"
    shutil.copytree(Path(sandgate.__file__).parent, copy / "src" / "sandgate")
    venv.create(copy / ".venv")
    (packages,) = (copy / ".venv" / "lib").glob("python*/site-packages")
    shutil.copy(Path(__file__).parent / "fastclock.py", packages)
    moment = {"rate": _RATE, "wall": time.time(), "monotonic": time.monotonic()}
    (packages / "fastclock.json").write_text(json.dumps(moment))
    own = [path for path in site.getsitepackages() if path.startswith(sys.prefix)]
    lines = [str(copy / "src"), *own, "import fastclock"]
    (packages / "copy.pth").write_text("\n".join(lines) + "\n")
    node.program = (str(copy / ".venv" / "bin" / "python"), "-m", "sandgate")
    with node:
        yield node
        left = node.stop()
        log = node.log_tail()
    assert not left, "\n".join(left) + f"\n{log}"


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_day_of_timers_leaves_nothing(fast_node: Node) -> None:
    """Ends of time, pauses at it, keepalives, samples, logs, the reaper: all that waits."""
    for _ in range(_WARM_TURNS):
        _hours(fast_node)
    time.sleep(4)
    before, memory, pids = _belongings(fast_node), [_memory(fast_node)], Killer(fast_node).pids()
    counts: Counter[str] = Counter()
    for _ in range(_TURNS):
        counts.update(_hours(fast_node))
        memory.append(_memory(fast_node))
    print(dict(counts))
    _settle(fast_node, before)
    assert Killer(fast_node).pids() == pids, "one was started again"
    _check_growth([*memory, _memory(fast_node)])


def _hours(node: Node) -> dict[str, int]:
    """By a client that is gone afterwards, as in :func:`_cycle`, and that does not keep idle
    connections as long as SDKs do: there were as many as the machine is fast."""
    client = Client(node, E2B_KEEPALIVE_EXPIRY="5")
    try:
        counts: dict[str, int] = client("day", _TURN_SECONDS)
        return counts
    finally:
        client.close()
