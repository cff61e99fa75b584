"""kill -9 of the node's parts, each alone and all together, under load, again and again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from faults.conftest import COMPONENTS, Client, Killer, until
from internet import Internet
from internet.names import ATTACKER
from internet.node import Node

_HERE = Path(__file__).parent
_ROUNDS = 6
_LONG_ROUNDS = 50
_BACK_SECONDS = 10.0
"""Generous, for a machine that others use too; `make bench` measures."""

_ECHO = "1.1.1.1"
_CLOSED = {"allow_out": [_ECHO, "google.com", "*.github.com"], "deny_out": ["0.0.0.0/0"]}
"""Kernel and gateway both have a say: an address, names, nothing else."""


def _victims() -> itertools.cycle[tuple[str, ...]]:
    return itertools.cycle([*((name,) for name in COMPONENTS), COMPONENTS, ("launcher", "egress")])


@pytest.fixture
def lasting(client: Client, world: Internet) -> Client:
    """Sandboxes that must notice nothing: one counts, one holds a connection, one knocks."""
    program = (_HERE / "inside.py").read_text()
    for label in ("count", "hold", "knock"):
        client("create", label, program, {} if label == "count" else _CLOSED)
    client("start", "count", "count", "/home/user/numbers")
    client("start", "hold", "hold", _ECHO, "8080", "/home/user/held")
    forbidden = [f"{ATTACKER}:{port}" for port in (80, 443, 8080)]
    client("start", "knock", "knock", "/home/user/knocked", *forbidden, f"{_ECHO}:80")
    return client


def _numbers(text: str) -> list[int]:
    return [int(line) for line in text.split("\n")[:-1]]


def _check_unharmed(client: Client, before: dict[str, Any], world: Internet) -> None:
    """Everything that lasted is what it was, and works."""
    facts = client("facts")
    assert {label: facts.get(label) for label in before} == before
    numbers = _numbers(client("read", "count", "/home/user/numbers"))
    assert numbers == list(range(len(numbers)))
    held = client("read", "hold", "/home/user/held")
    assert "lost" not in held, held[-200:]
    # The name still leads where it should, and the rest nowhere.
    page = client("run", "hold", "curl -s -m 10 --retry 20 --retry-all-errors http://google.com/")
    assert '"host": "google.com"' in page, page
    knocked = client("read", "knock", "/home/user/knocked")
    reached = {line for line in knocked.splitlines() if line.startswith("open")}
    assert reached <= {f"open {_ECHO}:80"}, reached
    assert not world.contacts(destination=ATTACKER)


def _storm(rounds: int, client: Client, killer: Killer, world: Internet) -> list[float]:
    before = client("facts")
    assert sorted(before) == ["count", "hold", "knock"]
    back: list[float] = []
    client("load", True)
    for _, victims in zip(range(rounds), _victims(), strict=False):
        old = killer.pids()
        killer.kill(*victims)
        until(
            lambda old=old, victims=victims: all(
                killer.pids().get(name, old[name]) != old[name] for name in victims
            ),
            _BACK_SECONDS,
            f"{victims} started again",
        )
        back.append(client("until_answered"))
        stream = client("stream", "count")
        if "haproxy" in victims:
            until(lambda: client("stream", "count")["broken"], 10, "the stream broke off")
            client("follow", "count")
        else:
            assert stream["broken"] is None, stream["broken"]
            numbers = _numbers(stream["text"])
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        _check_unharmed(client, before, world)
    client("load", False)
    # Half-made sandboxes are finished, and then end in time, or are removed.
    until(lambda: sorted(client("facts")) == sorted(before), 30, "the load's sandboxes are gone")
    return back


@pytest.mark.timeout(120)
def test_who_connects_while_haproxy_is_dead_waits_and_is_served(
    client: Client, killer: Killer, node: Node
) -> None:
    client("create", "waits", "", {})
    for _ in range(3):
        before = killer.pids()["haproxy"]
        killer.kill("haproxy")
        assert client("fresh", "waits") == 204
        until(lambda before=before: killer.pids().get("haproxy", before) != before, 10, "a new one")
    client("kill", "waits")


@pytest.mark.timeout(240)
def test_whatever_is_killed_no_sandbox_command_file_byte_or_policy_is_lost(
    lasting: Client, killer: Killer, world: Internet, node: Node
) -> None:
    _storm(_ROUNDS, lasting, killer, world)
    _end(lasting, node)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fifty_kills_in_a_row_lose_nothing(
    lasting: Client, killer: Killer, world: Internet, node: Node
) -> None:
    back = _storm(_LONG_ROUNDS, lasting, killer, world)
    print(f"back after {sorted(back)[len(back) // 2]:.2f} s at the median, {max(back):.2f} at most")
    _end(lasting, node)


def _end(client: Client, node: Node) -> None:
    for label in ("count", "hold", "knock"):
        client("kill", label)
    alive = [child.name for child in (node.data_dir / "cells").glob("*.json")]
    assert not alive, alive
