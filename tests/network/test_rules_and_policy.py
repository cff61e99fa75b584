"""The kernel's rules and the pure policy are the same thing: random policies, packets for real."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from _pytest.mark import ParameterSet
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from network import netlab
from network.netlab import GATEWAY, GATEWAY_PORT, HTTPS_PORT, INGRESS, SANDBOXES, UPLINK
from network.observers import Fate, Observers, observers
from network.oracle import BROADCASTS, Oracle
from network.packets import (
    ACK,
    ECHO,
    ECHO_REPLY,
    ESP,
    GRE,
    ICMP,
    IPV6_IN_IPV4,
    SYN,
    TCP,
    TIMESTAMP,
    UDP,
    UNREACHABLE,
    Packet,
    Shape,
)
from sandgate.guard import ALWAYS_DENIED, AddressGuard
from sandgate.network import HOST_ADDRESS, NetworkConfig, chains, ruleset
from sandgate.network.nftables import Chain, NamedSet
from sandgate.network.ranges import Ranges, reachable_ranges
from sandgate.network.statements import show
from sandgate.policy import (
    RESOLVER,
    EgressPolicy,
    Mode,
    NameSet,
    NetworkSet,
)

OPENINGS = ("10.64.0.0/10", "169.254.169.254/32", "240.0.0.0/5")
_UPLINK_NETWORK = IPv4Network(f"{UPLINK}/24", strict=False)
_SLOTS = (0, 1)
_LANDMARKS = (
    RESOLVER,
    INGRESS,
    GATEWAY,
    HOST_ADDRESS,
    IPv4Address(UPLINK),
    IPv4Address(netlab.FAR),
    *(netlab.config().address(slot) for slot in (*_SLOTS, 2)),
    IPv4Address("1.1.1.1"),
    IPv4Address("169.254.169.254"),
)
_PORTS = (7, 53, 80, 443, 853, HTTPS_PORT, GATEWAY_PORT)
_SERVERS = (RESOLVER, IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9"), IPv4Address("10.0.0.53"))


@dataclass(frozen=True, slots=True)
class Round:
    """A policy for each sandbox, and what they send, each from the sandbox with that index."""

    policies: tuple[EgressPolicy, ...]
    packets: tuple[tuple[int, Packet], ...]


def _edges(network: IPv4Network) -> Iterator[IPv4Address]:
    first, last = int(network.network_address), int(network.broadcast_address)
    for value in (first - 1, first, last, last + 1):
        if 0 <= value <= 0xFFFFFFFF:
            yield IPv4Address(value)


_PLACES = st.one_of(
    st.sampled_from(_LANDMARKS),
    st.sampled_from([edge for network in ALWAYS_DENIED for edge in _edges(network)]),
    st.builds(
        lambda high, low: IPv4Address(high << 24 | low),
        st.sampled_from([1, 2, 3, 8, 9, 11, 127, 128, 172, 198, 200, 223]),
        st.sampled_from([0, 1, 0xFF, 0x100, 0xFFFF, 0x80808, 0x7FFFFF, 0x800000, 0xFFFFFF]),
    ),
    st.integers(0, 0xFFFFFFFF).map(IPv4Address),
)
_NETWORKS = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    _PLACES,
    st.sampled_from([1, 7, 8, 9, 15, 16, 24, 30, 31, 32, 32, 32]),
)
_SETS = st.lists(_NETWORKS, max_size=5).map(NetworkSet)
_POLICIES = st.builds(
    EgressPolicy,
    _SETS,
    st.one_of(_SETS, st.just(NetworkSet([IPv4Network("0.0.0.0/0")]))),
    st.sampled_from([NameSet(), NameSet(), NameSet.of(["example.com"]), NameSet(every=True)]),
    st.one_of(
        st.just({}),
        st.dictionaries(st.sampled_from(_PORTS), st.just(NameSet.of(["example.com"])), max_size=3),
    ),
    st.one_of(st.none(), st.lists(st.sampled_from(_SERVERS), unique=True, max_size=2).map(tuple)),
    st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.ENFORCE, Mode.REPORT]),
)


@st.composite
def _rounds(draw: st.DrawFn) -> Round:
    policies = tuple(draw(_POLICIES) for _ in _SLOTS)
    edges = {
        edge
        for policy in policies
        for networks in (policy.allow, policy.deny)
        for network in networks.networks
        for edge in _edges(network)
    }
    somewhere = st.one_of(st.sampled_from(sorted(edges)), _PLACES) if edges else _PLACES
    # Nobody answers for other addresses on the link.
    destinations = somewhere.filter(
        lambda to: to not in _UPLINK_NETWORK or to in (*_LANDMARKS, *BROADCASTS)
    )
    own = [netlab.config().address(slot) for slot in _SLOTS]

    def packet(sender: int, forge: int, made: Packet) -> tuple[int, Packet]:
        if made.protocol not in (TCP, UDP, ICMP):
            sender = 0  # behind one address, they are one sandbox's at a time
        return sender, made if forge < 2 else replace(made, source=own[sender])

    packets = st.builds(
        packet,
        st.sampled_from(range(len(_SLOTS))),
        st.integers(0, 9),
        st.one_of(
            st.builds(
                Packet,
                source=_PLACES,
                destination=destinations,
                protocol=st.sampled_from([TCP, TCP, TCP, UDP, UDP, ICMP, GRE, ESP, IPV6_IN_IPV4]),
                port=st.sampled_from(_PORTS),
                flags=st.sampled_from([SYN, SYN, SYN, ACK]),
                icmp_type=st.sampled_from([ECHO, ECHO, ECHO_REPLY, TIMESTAMP, UNREACHABLE]),
                shape=st.sampled_from([*[Shape.WHOLE] * 14, *Shape]),
            ),
            st.builds(
                Packet,
                source=_PLACES,
                destination=st.sampled_from([*_SERVERS, INGRESS, IPv4Address(UPLINK)]),
                protocol=st.sampled_from([TCP, UDP]),
                port=st.sampled_from([53, 443, HTTPS_PORT]),
            ),
        ),
    )
    return Round(policies, tuple(draw(st.lists(packets, min_size=20, max_size=40))))


@contextmanager
def _comparison(openings: tuple[str, ...] = ()) -> Iterator[Comparison]:
    guard = AddressGuard(SANDBOXES, tuple(IPv4Network(opening) for opening in openings))
    with netlab.lab(openings) as lab, observers(lab, _SLOTS) as eyes:
        yield Comparison(eyes, guard)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Carries rounds out, and compares what happens with what the policy says."""

    eyes: Observers
    guard: AddressGuard

    def run(self, tried: Round) -> None:
        oracles = []
        for slot, policy in zip(_SLOTS, tried.policies, strict=True):
            network = self.eyes.lab.network
            network.apply(slot, policy)
            oracles.append(Oracle(network.address(slot), policy, self.guard))
        expected = [oracles[sender].fates(packet) for sender, packet in tried.packets]
        loud = {index for index, fates in enumerate(expected) if Fate.SILENCE not in fates}
        found = self.eyes.fates(tried.packets, loud)
        for (sender, packet), right, fates in zip(tried.packets, expected, found, strict=True):
            assert len(fates) == 1, f"{packet} of sandbox {sender}: {fates}"
            assert fates <= right, f"{packet} of sandbox {sender}: {fates}, not {right}"


_SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("openings", [(), OPENINGS], ids=["closed", "opened"])
def test_packets_meet_what_the_policy_says(openings: tuple[str, ...]) -> None:
    with _comparison(openings) as comparison:
        settings(_SETTINGS, max_examples=100)(given(_rounds())(comparison.run))()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("openings", [(), OPENINGS], ids=["closed", "opened"])
def test_many_packets_meet_what_the_policy_says(openings: tuple[str, ...]) -> None:
    with _comparison(openings) as comparison:
        settings(_SETTINGS, max_examples=2000)(given(_rounds())(comparison.run))()


_ELSEWHERE = {
    "input ": "what others than sandboxes send",
    "input_sandbox ": "packets that another table changed after they were judged",
    "forward": "answers, and packets that another table changed after they were judged",
    "cut ": "answers",
    "gateway ": "what the gateway sends",
    "output ": "what the host sends",
    "postrouting ": "the address that the far side sees",
    "refuse_": "what is told of refusals",
    "drop_": "what is told of refusals",
    "settled meta l4proto tcp ct state established": "connections under way",
    "to_gateway ct state established": "connections under way",
    "settled ip daddr": "answers to the host",
    "resolver ip saddr . ip daddr @resolving goto": "the reason that is told",
    "prerouting ip daddr 8.8.8.8 ": "the reason that is told, but where names have port 53",
    "ingress_address tcp dport 8443 ct state established": "connections under way",
    "ingress_address tcp dport 8443 goto refuse": "the reason that is told",
    "ingress_address goto refuse": "a second barrier, before the one in input_sandbox",
    "prerouting iifname !=": "what others than sandboxes send",
    "prerouting meta nfproto": "IPv6",
    "prerouting ct mark set": "forgetting the connections of a sandbox that ended",
    "gateway_tcp goto": "the gateway is not there",
    "opened ": "how much may be opened",
    "share_": "how much may be opened",
    "resolver ip saddr . ip daddr @resolving meta l4proto udp update": "how much may be asked",
    "queries ": "that connection tracking does not see queries",
    "answers ": "that connection tracking does not see answers to them",
}
"""Rules, by how they begin, that no packet of these rounds needs: other tests do."""


def _rules() -> Iterator[ParameterSet]:
    for chain in chains.base_chains(netlab.config()):
        for index, rule in enumerate(chain.rules):
            words = f"{chain.name} {show(rule)}"
            if words.startswith(tuple(_ELSEWHERE)):
                continue
            marks = () if chain.name in ("refuse", "never") else (pytest.mark.long,)
            yield pytest.param(chain.name, index, id=words, marks=marks)


def _require_notice(comparison: Comparison) -> None:
    """Some packet of some round meets what the policy does not say."""
    few = settings(_SETTINGS, max_examples=500, phases=[Phase.generate], database=None)
    with pytest.raises(AssertionError, match="of sandbox"):
        few(given(_rounds())(comparison.run))()


@pytest.mark.parametrize(("name", "index"), list(_rules()))
def test_a_missing_rule_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    make = chains.base_chains

    def without(config: NetworkConfig) -> tuple[Chain, ...]:
        return tuple(
            replace(chain, rules=chain.rules[:index] + chain.rules[index + 1 :])
            if chain.name == name
            else chain
            for chain in make(config)
        )

    monkeypatch.setattr(chains, "base_chains", without)
    monkeypatch.setattr(netlab, "PATIENCE", 0.3)
    with _comparison() as comparison:
        _require_notice(comparison)


@pytest.mark.parametrize(
    "missing",
    [
        ruleset.LINKS,
        ruleset.RESOLVING,
        ruleset.NAMED,
        ruleset.BY_NAME,
        ruleset.INGRESS,
        ruleset.OUTGOING,
    ],
    ids=lambda named: named.name,
)
def test_a_missing_element_is_noticed(monkeypatch: pytest.MonkeyPatch, missing: NamedSet) -> None:
    make = ruleset.sandbox_rules

    def without(*arguments: Any) -> ruleset.SandboxRules:
        rules = make(*arguments)
        elements = tuple(element for element in rules.elements if element.set != missing)
        return replace(rules, elements=elements)

    monkeypatch.setattr(ruleset, "sandbox_rules", without)
    monkeypatch.setattr(netlab, "PATIENCE", 0.3)
    with _comparison() as comparison:
        _require_notice(comparison)


def test_one_address_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    make = reachable_ranges

    def more(policy: EgressPolicy) -> Ranges:
        return tuple((first, min(last + 1, 0xFFFFFFFF)) for first, last in make(policy))

    monkeypatch.setattr(ruleset, "reachable_ranges", more)
    with _comparison() as comparison:
        _require_notice(comparison)
