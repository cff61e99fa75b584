"""Rules as data, and messages as bytes: no kernel involved."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from network import netlab
from sandgate.network import chains, netlink, ranges, ruleset, sysctl
from sandgate.network.nftables import RangeSet, Table
from sandgate.network.statements import show
from sandgate.policy import EgressPolicy, Mode, NetworkSet, parse_policy

ALL = (0, 0xFFFFFFFF)
NETWORKS = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 32),
)
SETS = st.lists(NETWORKS, max_size=8).map(NetworkSet)


def number(address: str) -> int:
    return int(IPv4Address(address))


@pytest.mark.parametrize(
    ("allow", "deny", "expected"),
    [
        ([], [], [ALL]),
        ([], ["0.0.0.0/0"], []),
        (["0.0.0.0/0"], ["0.0.0.0/0"], [ALL]),
        (["1.1.1.1"], ["0.0.0.0/0"], [(number("1.1.1.1"),) * 2]),
        (["1.1.1.1"], ["1.1.1.1"], [ALL]),
        ([], ["8.0.0.0/8"], [(0, number("7.255.255.255")), (number("9.0.0.0"), ALL[1])]),
        ([], ["128.0.0.0/1"], [(0, number("127.255.255.255"))]),
        ([], ["255.255.255.255"], [(0, number("255.255.255.254"))]),
        (
            ["1.0.0.0/8", "2.0.0.0/7"],
            ["0.0.0.0/0"],
            [(number("1.0.0.0"), number("3.255.255.255"))],
        ),
        (["5.0.0.0/8"], ["4.0.0.0/6"], None),
    ],
)
def test_reachable_ranges(
    allow: list[str], deny: list[str], expected: list[tuple[int, int]] | None
) -> None:
    if expected is None:
        expected = [
            (0, number("3.255.255.255")),
            (number("5.0.0.0"), number("5.255.255.255")),
            (number("8.0.0.0"), ALL[1]),
        ]
    assert list(ranges.reachable_ranges(parse_policy(allow, deny))) == expected


@given(allow=SETS, deny=SETS, chosen=st.lists(st.integers(0, 0xFFFFFFFF), max_size=20))
def test_reachable_ranges_are_what_the_policy_admits(
    allow: NetworkSet, deny: NetworkSet, chosen: list[int]
) -> None:
    policy = EgressPolicy(allow, deny)
    found = ranges.reachable_ranges(policy)
    for (_, last), (first, _) in pairwise(found):
        assert last + 1 < first, "ranges neither overlap nor touch"
    edges = [int(network[index]) for network in allow.networks + deny.networks for index in (0, -1)]
    for value in {*chosen, *edges, *(edge + 1 for edge in edges), *(edge - 1 for edge in edges)}:
        if 0 <= value <= 0xFFFFFFFF:
            within = any(first <= value <= last for first, last in found)
            assert within == policy.decide(IPv4Address(value)).allowed


@pytest.mark.parametrize(
    ("policy", "sets", "shown"),
    [
        (EgressPolicy(), {"links", "resolving", "ingress", "outgoing", "incoming"}, ""),
        (parse_policy(None, ["0.0.0.0/0"]), {"links"}, ""),
        (
            parse_policy(["google.com", "1.1.1.1"], ["0.0.0.0/0"]),
            {"links", "resolving", "named", "by_name", "outgoing", "incoming"},
            """chain out_5 {
    ip daddr @reach_5_0 accept
}
chain in_5 {
    ct original ip daddr @reach_5_0 accept
}""",
        ),
        (parse_policy(["google.com:22"], ["0.0.0.0/0"]), {"links", "resolving", "named"}, ""),
        (
            parse_policy(["google.com:443"], ["0.0.0.0/0"], dns_servers=[]),
            {"links", "named", "by_name"},
            "",
        ),
        (
            parse_policy(None, ["0.0.0.0/0"], mode=Mode.REPORT),
            {"links", "resolving", "named", "by_name", "ingress", "outgoing", "incoming"},
            "",
        ),
    ],
)
def test_a_policy_becomes_elements_and_chains(
    policy: EgressPolicy, sets: set[str], shown: str
) -> None:
    rules = ruleset.sandbox_rules(netlab.config(), 5, policy)
    assert {element.set.name for element in rules.elements} == sets
    assert ruleset.show_chains(rules.chains) == shown


def test_other_ranges_go_to_the_other_set_and_the_same_stay_where_they_are() -> None:
    rules, history = ruleset.NO_RULES, []
    for address in ("1.1.1.1", "2.2.2.2", "2.2.2.2", "1.1.1.1"):
        policy = parse_policy([address], ["0.0.0.0/0"])
        rules = ruleset.sandbox_rules(netlab.config(), 5, policy, rules)
        assert rules.ranges is not None
        history.append((rules.ranges.name, len(rules.chains[0].rules)))
    assert history == [("reach_5_0", 1), ("reach_5_1", 3), ("reach_5_1", 3), ("reach_5_0", 3)]


def test_chains_that_a_sandbox_s_packet_cannot_leave_undecided() -> None:
    last = {chain.name: show(chain.rules[-1]) for chain in chains.base_chains(netlab.config())}
    assert last["refuse"] == "reject with icmpx admin-prohibited"
    assert last["prerouting"] == "goto by_address"
    for name in ("by_address", "input_sandbox", "ingress_address", "resolver", "gateway_tcp"):
        assert last[name].startswith("goto refuse_"), name
    for name in (name for name in last if name.startswith("refuse_")):
        assert last[name].endswith(" goto refuse"), name
    for name in (name for name in last if name.startswith("drop_")):
        assert last[name].endswith(" drop"), name
    for name in ("forward_to_sandbox", "cut"):
        assert last[name] == "drop", name
    # Whatever comes from a sandbox was decided in prerouting.
    assert last["forward_from_sandbox"] == "accept"


_FEW = st.frozensets(st.integers(0, 15)).map(sorted)


def _as_ranges(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    return ranges.merged(NetworkSet(IPv4Network(number) for number in numbers))


@given(_FEW, _FEW)
def test_ranges_cover_others_if_they_have_all_their_addresses(
    wide: list[int], narrow: list[int]
) -> None:
    covers = ranges.covers(_as_ranges(wide), _as_ranges(narrow))
    assert covers == set(wide).issuperset(narrow)


def test_large_sets_are_split_over_messages_that_fit() -> None:
    ranges = tuple((index * 512, index * 512 + 255) for index in range(10_000))
    _, *messages = Table("t").create_range_set(RangeSet("s", ranges))
    assert len(messages) == 7
    starts = b"".join(message.body for message in messages)
    for first, last in (*ranges[::200], ranges[-1]):
        assert first.to_bytes(4) in starts
        assert (last + 1).to_bytes(4) in starts


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8))
def test_attributes_are_read_as_written(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(netlink.attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(netlink.attributes(data)) == pairs


@given(st.binary(max_size=60))
def test_malformed_attributes_end_quietly(data: bytes) -> None:
    for _, value in netlink.attributes(data):
        assert len(value) <= len(data)


def test_an_attribute_that_does_not_fit_is_an_error() -> None:
    assert netlink.attribute(1, bytes(netlink.MAX_ATTRIBUTE))
    with pytest.raises(ValueError, match="netlink attribute 1 has 65532 bytes; 65531 fit"):
        netlink.attribute(1, bytes(netlink.MAX_ATTRIBUTE + 1))


def test_settings_survive_being_a_comment() -> None:
    values = {"net.ipv4.ip_forward": "0", "net.ipv4.icmp_ratemask": "6168"}
    assert sysctl.decode(sysctl.encode(values)) == values
    assert sysctl.decode("a comment of somebody else") == {}
