"""What holds for every policy, whatever is in it."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, collapse_addresses

from hypothesis import assume, given
from hypothesis import strategies as st

from sandgate.guard import ALWAYS_DENIED, AddressGuard
from sandgate.policy import (
    ALL_TRAFFIC,
    EgressPolicy,
    NameSet,
    NetworkSet,
    PolicyError,
    ResolverAccess,
    normalise_name,
    normalise_pattern,
    parse_policy,
)
from sandgate.policy.networks import parse_range

_OPENNESS = [ResolverAccess.NONE, ResolverAccess.NAMES, ResolverAccess.ALL]
# Few distinct values, so that they meet: equal, nested, touching.
_ADDRESSES = st.one_of(
    st.integers(0, 0xFFFFFFFF),
    st.builds(
        lambda high, low: high << 24 | low,
        st.sampled_from([1, 2, 8, 9, 10, 127, 128]),
        st.sampled_from([0, 1, 2, 0x080808, 0x7FFFFF, 0x800000, 0xFFFFFF]),
    ),
).map(IPv4Address)
_NETWORKS = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    _ADDRESSES,
    st.sampled_from([0, 1, 8, 9, 16, 24, 30, 31, 32]),
)
_LABELS = st.sampled_from(["a", "b", "xn--p1ai"])
_NAMES = (
    st.lists(_LABELS, min_size=1, max_size=4)
    .map(".".join)
    .filter(lambda name: normalise_name(name) is not None)
)
_PATTERNS = st.one_of(_NAMES, _NAMES.map("*.{}".format), st.just("*"))
_NETWORK_LISTS = st.lists(_NETWORKS, max_size=6)
_PATTERN_LISTS = st.lists(_PATTERNS, max_size=6)
_POLICIES = st.builds(
    EgressPolicy,
    _NETWORK_LISTS.map(NetworkSet),
    _NETWORK_LISTS.map(NetworkSet),
    _PATTERN_LISTS.map(NameSet.of),
)


@given(_NETWORK_LISTS)
def test_a_set_is_the_shortest_list_of_ranges_whatever_it_is_made_of(
    networks: list[IPv4Network],
) -> None:
    shortest = tuple(collapse_addresses(networks))
    made = NetworkSet(networks)
    assert made.networks == shortest
    assert made.texts() == [str(network) for network in shortest]
    assert NetworkSet.parse(reversed([str(network) for network in networks])) == made
    ends = [(int(network[0]), int(network[-1])) for network in shortest]
    assert list(made.ranges) == ends


@given(st.from_regex(r"\d{1,4}\.\d{1,3}\.\d{1,3}\.\d{1,3}(/\d{1,3})?", fullmatch=True))
def test_a_range_is_read_as_ipaddress_reads_it(text: str) -> None:
    found = parse_range(text)
    try:
        network = IPv4Network(text, strict=False)
    except ValueError:
        assert found is None
    else:
        padded = text.partition("/")[2].startswith("0") and not text.endswith("/0")
        assert found == (None if padded else (int(network[0]), int(network[-1])))


@given(_POLICIES)
def test_a_policy_survives_its_json(policy: EgressPolicy) -> None:
    assert EgressPolicy.from_json(json.loads(json.dumps(policy.to_json()))) == policy


@given(_NETWORK_LISTS, _PATTERN_LISTS, st.randoms())
def test_neither_order_nor_repetition_matters(
    networks: list[IPv4Network], patterns: list[str], dice: random.Random
) -> None:
    allow = [*map(str, networks), *patterns]
    deny = [*map(str, networks), ALL_TRAFFIC]
    allow = [entry for entry in allow if not entry.startswith("0.") or entry == ALL_TRAFFIC]
    deny = [entry for entry in deny if not entry.startswith("0.") or entry == ALL_TRAFFIC]
    policy = parse_policy(allow, deny)
    for entries in (allow, deny):
        entries += dice.choices(entries, k=2) if entries else []
        dice.shuffle(entries)
    assert parse_policy(allow, deny) == policy


@given(_POLICIES)
def test_what_a_policy_says_of_itself_is_parsed_as_itself(policy: EgressPolicy) -> None:
    if policy.names:  # only written beside the denial of everything
        policy = replace(policy, deny=NetworkSet([IPv4Network(ALL_TRAFFIC)]))
    said = policy.to_json()
    entries = said["allow"] + said["deny"]
    assume(all(entry == ALL_TRAFFIC or entry[:2] != "0." for entry in entries))
    assert parse_policy(said["allow"] + said["names"], said["deny"]) == policy


@given(
    st.one_of(
        _PATTERNS.map(str.title), st.text(st.sampled_from("aZ1.-_*\u212a\u0130 :/0"), max_size=12)
    )
)
def test_normalising_again_changes_nothing(text: str) -> None:
    name = normalise_name(text)
    if name is not None:
        assert normalise_name(name) == name
        assert normalise_name(f"{name}.".upper()) == name
    try:
        pattern = normalise_pattern(text, "allowOut")
    except PolicyError as error:
        assert error.entry == text
    else:
        assert normalise_pattern(pattern, "allowOut") == pattern
        name = pattern.partition(":")[0].removeprefix("*.")
        assert name == "*" or normalise_name(name) == name


@given(_NETWORK_LISTS, _ADDRESSES)
def test_a_set_of_networks_holds_what_its_networks_hold(
    networks: list[IPv4Network], address: IPv4Address
) -> None:
    found = NetworkSet(networks).find(address)
    assert (found is not None) == any(address in network for network in networks)
    assert found is None or address in found


@given(_PATTERN_LISTS, _NAMES)
def test_a_set_of_names_matches_what_its_patterns_match(patterns: list[str], name: str) -> None:
    def matches(pattern: str) -> bool:
        if pattern.startswith("*."):
            return name.endswith(pattern[1:])
        return pattern in ("*", name)

    found = NameSet.of(patterns).match(name)
    assert (found is not None) == any(map(matches, patterns))
    assert found is None or (found in patterns and matches(found))


@given(_POLICIES, _NETWORK_LISTS, _ADDRESSES, st.none() | _NAMES)
def test_denying_more_opens_nothing(
    policy: EgressPolicy, more: list[IPv4Network], address: IPv4Address, name: str | None
) -> None:
    tighter = EgressPolicy(policy.allow, NetworkSet([*policy.deny.networks, *more]), policy.names)
    if tighter.decide(address, name).allowed:
        assert policy.decide(address, name).allowed
    assert _OPENNESS.index(tighter.resolver) <= _OPENNESS.index(policy.resolver)


@given(_POLICIES, _NETWORK_LISTS, _PATTERN_LISTS, _ADDRESSES, st.none() | _NAMES)
def test_allowing_more_closes_nothing(
    policy: EgressPolicy,
    more: list[IPv4Network],
    names: list[str],
    address: IPv4Address,
    name: str | None,
) -> None:
    wider = EgressPolicy(
        NetworkSet([*policy.allow.networks, *more]),
        policy.deny,
        NameSet.of([*policy.names.patterns(), *names]),
    )
    if policy.decide(address, name).allowed:
        assert wider.decide(address, name).allowed
    assert _OPENNESS.index(wider.resolver) >= _OPENNESS.index(policy.resolver)


@given(_POLICIES, _ADDRESSES, _NAMES)
def test_a_name_is_never_a_disadvantage(
    policy: EgressPolicy, address: IPv4Address, name: str
) -> None:
    assert policy.decide(address, name).allowed >= policy.decide(address).allowed


@given(_NETWORK_LISTS, _ADDRESSES)
def test_the_guard_closes_what_the_operator_did_not_open(
    openings: list[IPv4Network], address: IPv4Address
) -> None:
    sandboxes = IPv4Network("1.0.0.0/16")
    denied = any(address in network for network in ALWAYS_DENIED)
    opened = any(address in network for network in openings)
    guard = AddressGuard(sandboxes, tuple(openings))
    assert guard.denies(address) == ((denied and not opened) or address in sandboxes)
    assert guard.denies(address, [address])
