"""The decision log of a node: from a program in a sandbox to who watches."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import httpx
import pytest

from e2e.box import DENY_ALL, Box, until
from internet import ATTACKER
from internet.node import Node, sandgate_command

WITHIN = 1.0
"""Seconds within which who watches must see what was decided."""


@pytest.fixture
def api(node: Node) -> Iterator[httpx.Client]:
    """The node's API."""
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    base, key = f"https://api.{os.environ['E2B_DOMAIN']}", os.environ["E2B_API_KEY"]
    with httpx.Client(base_url=base, headers={"X-API-KEY": key}, verify=context) as client:
        yield client


def log(api: httpx.Client, box: Box, **query: str) -> list[dict[str, Any]]:
    path = f"/sandboxes/{box.sandbox.sandbox_id}/network/decisions"
    answer = api.get(path, params=query)
    assert answer.status_code == 200, answer.text
    rows: list[dict[str, Any]] = answer.json()["decisions"]
    return rows


@contextmanager
def tail(node: Node, box: Box) -> Iterator[IO[str]]:
    """What `sandgate net tail --json` prints."""
    command = [sandgate_command(), "net", "tail", box.sandbox.sandbox_id, "--json"]
    with subprocess.Popen(
        [*command, "--config", str(node.config)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.terminate()


def test_a_refusal_is_seen_by_the_program_and_by_who_watches_within_a_second(
    node: Node, api: httpx.Client, make_box: Callable[..., Box]
) -> None:
    box = make_box(network={"allow_out": ["example.com"], "deny_out": DENY_ALL})
    with tail(node, box) as lines:
        # The reader is there once it sees something.
        until(lambda: "sandgate_tails 1.0" in api.get("/metrics").text)
        for outcome, kind, address, port in (
            ("refused", "tcp", ATTACKER, 22),
            ("prohibited", "udp", ATTACKER, 53),
        ):
            seen = box.probe(kind, address, port)
            answered = time.time()
            assert seen.outcome == outcome and seen.refused
            row = json.loads(lines.readline())
            assert time.time() - answered < WITHIN
            assert (row["protocol"], row["destination"], row["port"]) == (kind, address, port)
            assert (row["verdict"], row["reason"]) == ("deny", "denied_address")
            assert row["rule"] == "0.0.0.0/0" and row["count"] == 1
        assert box.curl(
            "https://example.org/", "--resolve", f"example.org:443:{ATTACKER}"
        ).exit_code
        row = json.loads(lines.readline())
        assert (row["name"], row["reason"]) == ("example.org", "denied_address")


def test_what_passed_is_suggested_and_stays_known_after_the_end(
    node: Node, api: httpx.Client, make_box: Callable[..., Box]
) -> None:
    box = make_box()
    assert box.fetch("http://example.com/")
    assert box.probe("tcp", ATTACKER, 80).outcome != "refused"
    assert box.probe("tcp", "10.66.0.3", 80).refused
    until(lambda: len(log(api, box, protocol="tcp")) >= 3)
    (refused,) = log(api, box, verdict="deny")
    assert (refused["destination"], refused["reason"]) == ("10.66.0.3", "always_denied")
    done = node.command("net", "suggest", box.sandbox.sandbox_id, "--json")
    suggested = json.loads(done.stdout)
    assert ATTACKER in suggested["allowOut"] and "10.66.0.3" not in suggested["allowOut"]
    assert suggested["denyOut"] == DENY_ALL
    box.sandbox.kill()
    until(lambda: any(row["bytesReceived"] for row in log(api, box, verdict="allow")))


def test_without_the_recorder_traffic_goes_on_and_it_comes_back(
    node: Node, api: httpx.Client, make_box: Callable[..., Box]
) -> None:
    box = make_box(network={"deny_out": [ATTACKER]})

    def recorder() -> int | None:
        status = json.loads(node.command("status", "--json").stdout)
        (pid,) = (item["pid"] for item in status["components"] if item["name"] == "recorder")
        return None if pid is None else int(pid)

    first = recorder()
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert box.fetch("http://example.com/")
    assert box.probe("tcp", ATTACKER, 80).refused
    until(lambda: recorder() not in (None, first), 15)

    def told() -> bool:
        assert box.probe("tcp", ATTACKER, 81).refused
        return bool(log(api, box, verdict="deny"))

    until(told, 15)


def test_explain_says_what_then_happens(
    node: Node, api: httpx.Client, make_box: Callable[..., Box]
) -> None:
    box = make_box(network={"allow_out": ["example.com", "1.1.1.1"], "deny_out": DENY_ALL})
    path = f"/sandboxes/{box.sandbox.sandbox_id}/network/explain"

    def explained(target: str) -> dict[str, Any]:
        answer = api.get(path, params={"target": target})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    by_name = explained("http://example.com")
    assert (by_name["verdict"], by_name["path"], by_name["rule"]) == (
        *("allow", "gateway"),
        "example.com",
    )
    assert box.fetch("http://example.com/")
    assert explained("tcp://1.1.1.1:8080")["reason"] == "allowed_address"
    assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"
    refused = explained(f"tcp://{ATTACKER}:8080")
    assert (refused["verdict"], refused["reason"]) == ("deny", "denied_address")
    assert box.probe("tcp", ATTACKER, 8080).refused
    assert explained("https://google.com")["reason"] == "name_not_allowed"
    command = node.command("net", "explain", box.sandbox.sandbox_id, "http://example.com")
    assert command.stdout.startswith("allow: allowed_name by example.com"), command.stderr
    wrong = api.get(path, params={"target": "example.com"})
    assert wrong.status_code == 400 and "there is no port" in wrong.json()["message"]


def test_report_mode_lets_pass_and_tells_what_it_would_refuse(
    node: Node, api: httpx.Client, make_box: Callable[..., Box]
) -> None:
    box = make_box(network={"allow_out": ["example.com"], "deny_out": DENY_ALL})
    assert box.probe("tcp", "1.1.1.1", 8080, "x").refused
    switched = node.command("net", "report", box.sandbox.sandbox_id, "on")
    assert switched.returncode == 0, switched.stderr
    assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"
    assert box.fetch("http://google.com/")
    assert box.probe("tcp", "169.254.169.254", 80).refused, "what is always denied stays so"

    def reported() -> set[tuple[str, str | None]]:
        rows = [row for row in log(api, box) if row["reported"]]
        return {(row["destination"], row["name"]) for row in rows if row["protocol"] != "dns"}

    until(lambda: ("1.1.1.1", None) in reported(), 10)
    until(lambda: "google.com" in {name for _, name in reported()}, 10)
    suggested = node.command("net", "suggest", box.sandbox.sandbox_id, "--json")
    policy = json.loads(suggested.stdout)
    assert {"google.com", "1.1.1.1"} <= set(policy["allowOut"]), policy
    assert node.command("net", "report", box.sandbox.sandbox_id, "off").returncode == 0
    assert box.probe("tcp", "1.1.1.1", 8080, "x").refused
    box.policy(policy["allowOut"], policy["denyOut"])
    assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"
