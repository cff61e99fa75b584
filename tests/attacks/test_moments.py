"""Attacks in the moment when something changes, and the counters themselves."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from attacks.attack import ADDRESS, MOVING, NAMES, OPEN, SITE, SITE_ADDRESS, TRAPS, Policy, Verdict
from attacks.catalogue_moments import FORGOTTEN, GATEWAY_KILLED, HALF_OPEN, TIGHTENED
from attacks.stage import Stage
from internet import ATTACKER, Record, namespaces
from internet.server import COUNTED_TCP_PORT as COUNTED
from sandgate.network import conntrack
from sandgate.network.actions import saddr_mark
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER

_HOST = "attacker.example.net"
_SEEN: dict[str, dict[str, object]] = {
    "tcp": {"kind": "data"},
    "http": {"kind": "request"},
    "udp": {"kind": "packet", "protocol": "udp"},
    "icmp": {"kind": "packet", "protocol": "icmp"},
}
"""What the far side notes of a flow under way."""
_FETCH = {"address": SITE_ADDRESS, "host": SITE}


def _set_policy(stage: Stage, policy: Policy) -> None:
    stage.driver.update(stage.sandboxes[MOVING.title].sandbox, policy.network())
    stage.model.set_policy(policy.allow, policy.deny)


def _until(stage: Stage, **wanted: object) -> None:
    end = time.monotonic() + 10
    while not stage.internet.contacts(**wanted):
        assert time.monotonic() < end, f"never seen: {wanted}"
        time.sleep(0.02)


def test_a_tighter_policy_ends_what_is_under_way_and_nothing_else(stage: Stage) -> None:
    """Judged after the call for the change has returned."""
    loose = Policy("", allow=(_HOST, ATTACKER, SITE_ADDRESS), deny=("0.0.0.0/0",))
    tight = Policy("", allow=(SITE_ADDRESS,), deny=("0.0.0.0/0",))
    gated = (stage.ours, stage.theirs)
    _set_policy(stage, loose)
    stage.internet.reset()
    flows = {"kinds": list(TIGHTENED), "victim": ATTACKER, "friend": SITE_ADDRESS, "host": _HOST}
    running = [stage.ask(place, MOVING, "flows.keep", {**flows, "seconds": 4}) for place in gated]
    for place in gated:
        for seen in _SEEN.values():
            _until(stage, **seen, source=place.address, destination=ATTACKER)
    _set_policy(stage, tight)
    stage.internet.reset()
    time.sleep(0.5)
    contacts = stage.internet.contacts()
    for place, program in zip(gated, running, strict=True):
        made = contacts.where(source=place.address)
        assert made.where(destination=SITE_ADDRESS), "what is still allowed was cut as well"
        for kind, scenario in TIGHTENED.items():
            goes_on = bool(made.where(**_SEEN[kind], destination=ATTACKER))
            expected = scenario.ours if place is stage.ours else scenario.theirs
            assert goes_on is (expected is Verdict.PASSES), f"{place.title}: {kind}"
        assert program.result(30) is (place is stage.theirs), "as the flows themselves saw it"


def _gateway(stage: Stage) -> int:
    (process,) = [
        number
        for number in stage.node.processes()
        if b"egress" in Path(f"/proc/{number}/cmdline").read_bytes()
    ]
    return process


def test_a_killed_gateway_lets_nothing_pass_and_is_back_soon(stage: Stage) -> None:
    gateway = _gateway(stage)
    ours = stage.ours
    _set_policy(stage, NAMES)
    stage.internet.reset()
    attempts = {"address": ATTACKER, "allowed": SITE, "other": _HOST, "seconds": 4}
    hammer = stage.ask(ours, NAMES, "flows.hammer", attempts)
    echoes = stage.ask(ours, ADDRESS, "flows.echoes", {"address": SITE_ADDRESS, "seconds": 4})
    _until(stage, kind="data", destination=SITE_ADDRESS)
    os.kill(gateway, signal.SIGKILL)
    killed = time.monotonic()
    assert stage.ask(ours, MOVING, "flows.back_after", {**_FETCH, "patience": 10}).result(30)
    seconds = time.monotonic() - killed
    print(f"the gateway was back after {seconds:.2f} s")
    assert seconds < 3, "a second, and what a busy machine adds"
    hammer.result(30)
    assert echoes.result(30), "a connection that the kernel forwards noticed it"
    made = stage.internet.contacts().without(destination=SITE_ADDRESS, port=COUNTED)
    leaks = stage.leaks(ours, NAMES, made)
    assert bool(leaks) is (GATEWAY_KILLED.ours is Verdict.PASSES), leaks
    assert _gateway(stage) != gateway


def test_a_query_that_the_kernel_forgets_does_not_open_a_way_past_the_gateway(stage: Stage) -> None:
    """Connection tracking forgets what is least important when its table is full.

    The gateway's late answer would then look like a conversation that the host began, and what the
    sandbox sends next like answers in it: to a resolver that nobody filters. But the kernel lets
    the gateway begin nothing towards a sandbox.
    """
    sandbox = stage.driver.create(NAMES.network())
    address = IPv4Address(stage.driver.run(sandbox, "hostname", "-I").strip())
    names = {"name": f"late.{TRAPS}", "secret": "c2VjcmV0.example.net", "seconds": 2}
    request = {"program": "flows.ask_and_go_on", "arguments": names, "control": None}
    stage.internet.set_name(f"late.{TRAPS}", Record(addresses=(SITE_ADDRESS,)))
    stage.internet.delay_dns(0.5)
    stage.internet.reset()
    try:
        # Nobody waits for it: the connection that says how it ended is forgotten as well.
        command = f"echo '{json.dumps(request)}' | setsid python3 -m programs.run >/dev/null 2>&1 &"
        stage.driver.run(sandbox, "sh", "-c", command)
        _until(stage, kind="query", name=f"late.{TRAPS}")
        with namespaces.inside(stage.internet.attached[0]), closing(_netfilter()) as kernel:
            conntrack.forget(kernel, saddr_mark(address))
        time.sleep(1)
    finally:
        stage.internet.delay_dns(0)
    leaks = stage.leaks(stage.ours, NAMES, stage.internet.contacts())
    assert bool(leaks) is (FORGOTTEN.ours is Verdict.PASSES), leaks[:10]
    stage.driver.begin("kill", sandbox=sandbox).result(30)


def _netfilter() -> NetlinkSocket:
    return NetlinkSocket(NETLINK_NETFILTER)


@pytest.mark.long
@pytest.mark.timeout(180)
def test_ten_thousand_half_open_connections_are_not_kept(stage: Stage) -> None:
    _set_policy(stage, NAMES)
    flood = {"address": ATTACKER, "count": 10_000, "patience": 15}
    ours, theirs = (
        stage.ask(place, NAMES, "flows.half_open", flood) for place in (stage.ours, stage.theirs)
    )
    while not ours.done():  # another sandbox is served all the time
        fetch = stage.ask(stage.ours, MOVING, "flows.back_after", {**_FETCH, "patience": 5})
        assert fetch.result(30)
        time.sleep(0.5)
    assert ours.result() is (HALF_OPEN.ours is Verdict.PASSES)
    assert theirs.result(90) is (HALF_OPEN.theirs is Verdict.PASSES)


def test_the_neighbours_and_the_machines_servers_count_who_is_allowed_to_come(
    stage: Stage,
) -> None:
    """Without this, their silence would prove nothing."""
    heard = stage.driver.run(stage.neighbour, "cat", "/tmp/heard")
    words = stage.ours.words
    url = {"address": words["node"], "name": words["url"], "host": words["url"], "path": "/"}
    assert stage.ask(stage.ours, OPEN, "local.url", url).result(30)
    assert len(stage.driver.run(stage.neighbour, "cat", "/tmp/heard")) > len(heard)
    bystander = stage.bystanders["ours"]
    count = bystander.count()
    with namespaces.inside(stage.internet.attached[0]):
        socket.create_connection((stage.ours.address, 7000), 5).close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"x", (stage.ours.address, 7000))
    assert bystander.count() == count + 2
