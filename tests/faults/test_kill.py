"""kill -9 of the node's parts, each alone and all together, under load, again and again."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from faults.conftest import COMPONENTS, HELPERS, SUPERVISOR, Client, Killer, until
from internet import Internet
from internet.names import ATTACKER
from internet.node import Node

_HERE = Path(__file__).parent
_ROUNDS = 50
_BACK_SECONDS = 10.0
"""Generous, for a machine that others use too; `make bench` measures."""

_ECHO = "1.1.1.1"
_CLOSED = {"allow_out": [_ECHO, "google.com", "*.github.com"], "deny_out": ["0.0.0.0/0"]}
"""Kernel and gateway both have a say: an address, names, nothing else."""


_ALONE = tuple((name,) for name in COMPONENTS)
_SOME = (*_ALONE, COMPONENTS)
_EACH = (
    *_ALONE,
    (HELPERS,),
    (*COMPONENTS, HELPERS),
    ("launcher", "egress"),
    (SUPERVISOR,),
    (SUPERVISOR, *COMPONENTS, HELPERS),
)


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


def _storm(
    rounds: Iterable[tuple[str, ...]], client: Client, killer: Killer, world: Internet
) -> dict[str, list[float]]:
    """By what was killed: seconds until it ran again and the API answered."""
    before = client("facts")
    assert sorted(before) == ["count", "hold", "knock"]
    back: dict[str, list[float]] = {}
    client("load", True)
    client("naps", True)
    for victims in rounds:
        old = killer.pids()
        begun = time.monotonic()
        killer.kill(*victims)
        until(
            lambda old=old, victims=victims: all(
                killer.pids().get(name, old[name]) != old[name]
                for name in victims
                if name in COMPONENTS
            ),
            _BACK_SECONDS,
            f"{victims} started again",
        )
        client("until_answered")
        back.setdefault(" ".join(victims), []).append(time.monotonic() - begun)
        try:
            _check_stream(client, victims)
            _check_unharmed(client, before, world)
        except AssertionError as error:
            error.add_note(f"after {victims} were killed")
            raise
    client("load", False)
    assert client("naps", False) == []
    # Half-made sandboxes are finished, and then end in time, or are removed.
    until(lambda: sorted(client("facts")) == sorted(before), 30, "the load's sandboxes are gone")
    return back


def _check_stream(client: Client, victims: tuple[str, ...]) -> None:
    """It goes on without a gap, or broke off because its proxy was killed."""
    before = len(client("stream", "count")["text"])

    def has_news() -> bool:
        stream = client("stream", "count")
        return stream["broken"] is not None or len(stream["text"]) > before

    until(has_news, 10, "more of the stream, or its end")
    stream = client("stream", "count")
    if stream["broken"] is not None:
        assert "haproxy" in victims, stream["broken"]
        client("follow", "count")
    else:
        numbers = _numbers(stream["text"])
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


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
    _storm(_SOME, lasting, killer, world)
    _end(lasting, node)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_fifty_kills_in_a_row_lose_nothing(
    lasting: Client, killer: Killer, world: Internet, node: Node
) -> None:
    back = _storm(itertools.islice(itertools.cycle(_EACH), _ROUNDS), lasting, killer, world)
    for victims, seconds in back.items():
        print(
            f"{victims}: back after {statistics.median(seconds):.2f} s, at most {max(seconds):.2f}"
        )
    _end(lasting, node)


def _end(client: Client, node: Node) -> None:
    for label in ("count", "hold", "knock"):
        client("kill", label)
    alive = [child.name for child in (node.data_dir / "cells").glob("*.json")]
    assert not alive, alive
