"""The smaller parts of the gateway process."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from sandgate.decisions.feed import Feed
from sandgate.egress.decision_log import LINES_PER_SECOND, DecisionLog, Entry, LineBudget
from sandgate.egress.gateway import GatewayConfig, parse_resolv_conf, upstream_servers
from sandgate.egress.own_addresses import MAX_AGE, OwnAddresses
from sandgate.egress.privileges import Identity
from sandgate.egress.rate import RateBudget
from sandgate.limits import BURST_SECONDS, TrafficLimits
from sandgate.reasons import Reason

CONFIG = GatewayConfig(
    gateway_address=IPv4Address("198.18.0.2"),
    ingress_address=IPv4Address("198.18.0.1"),
    https_port=8443,
    domain="sandgate.localhost",
    control_socket=Path("run/egress.sock"),
    decisions_socket=Path("run/decisions.sock"),
    sandboxes=IPv4Network("198.18.0.0/16"),
    upstream_dns=(IPv4Address("192.0.2.53"),),
    internal_allow=(IPv4Network("10.1.0.0/16"),),
    user="nobody",
    control_user="daemon",
    limits=TrafficLimits(connections=100, dns_queries=7, upload_mbit=3),
)


def test_the_configuration_survives_the_wire() -> None:
    assert GatewayConfig.from_json(CONFIG.to_json()) == CONFIG


def test_a_configuration_that_cannot_be_used_ends_the_process_with_the_reason() -> None:
    for given, said in (
        ("{}", "gateway_address"),
        (CONFIG.to_json().replace("nobody", "no-such-user"), "useradd"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sandgate.egress"],
            input=given,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 1
        assert said in done.stderr


def test_the_name_servers_of_resolv_conf_are_found() -> None:
    text = """# comment
search example.org
nameserver 127.0.0.53
 nameserver\t192.0.2.1 # trailing
nameserver 2001:db8::1
nameserver
nameserver 192.0.2.1
options edns0
"""
    assert parse_resolv_conf(text) == (IPv4Address("127.0.0.53"), IPv4Address("192.0.2.1"))
    assert parse_resolv_conf("") == ()


def test_configured_servers_come_before_those_of_the_machine() -> None:
    assert upstream_servers(CONFIG.upstream_dns) == CONFIG.upstream_dns


def test_the_machines_own_addresses_are_known_and_not_asked_for_all_the_time() -> None:
    now = 0.0
    own = OwnAddresses(lambda: now)
    try:
        addresses = own.current()
        assert IPv4Address("127.0.0.1") in addresses
        for address in addresses:  # only an own address can be bound
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.bind((str(address), 0))
        now = MAX_AGE / 2
        assert own.current() is addresses
        now = MAX_AGE * 2
        assert own.current() is not addresses
    finally:
        own.close()


def test_an_unknown_user_is_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no-such-user.*useradd"):
        Identity.of("no-such-user")


def entry(name: str | None = None) -> Entry:
    return Entry("sandbox", "tls", "192.0.2.1", 443, True, Reason.ALLOWED_NAME, name=name)


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed("egress", tmp_path / "decisions.sock")
    yield made
    made.close()


def test_a_decision_is_one_line_of_json(caplog: pytest.LogCaptureFixture, feed: Feed) -> None:
    caplog.set_level(logging.INFO, "sandgate.egress.decisions")
    DecisionLog(lambda: 1234.5678, feed).write(entry("good.test"))
    assert json.loads(caplog.messages[0]) == {
        "time": 1234.568,
        "sandboxID": "sandbox",
        "protocol": "tls",
        "destination": "192.0.2.1",
        "port": 443,
        "name": "good.test",
        "verdict": "allow",
        "reason": "allowed_name",
        "rule": None,
        "bytesSent": 0,
        "bytesReceived": 0,
        "durationMs": 0.0,
    }


def test_a_noisy_sandbox_is_cut_short_and_the_rest_counted(
    caplog: pytest.LogCaptureFixture, feed: Feed
) -> None:
    caplog.set_level(logging.INFO, "sandgate.egress.decisions")
    now = 5.0
    log, noisy, quiet = DecisionLog(lambda: now, feed), LineBudget(), LineBudget()
    for _ in range(LINES_PER_SECOND + 7):
        log.write(entry(), noisy)
    assert len(caplog.messages) == LINES_PER_SECOND
    log.write(entry(), quiet)
    assert len(caplog.messages) == LINES_PER_SECOND + 1
    now = 6.0
    log.write(entry(), noisy)
    assert json.loads(caplog.messages[-1])["suppressed"] == 7


def test_a_rate_allows_a_burst_and_then_so_many_a_second() -> None:
    budget, rate = RateBudget(), 10
    assert sum(budget.take(100.0, rate) for _ in range(1000)) == rate * BURST_SECONDS
    assert not budget.take(100.05, rate)
    assert [budget.take(100.25, rate) for _ in range(3)] == [True, True, False]
    assert sum(budget.take(1e6, rate) for _ in range(1000)) == rate * BURST_SECONDS, "no hoarding"
