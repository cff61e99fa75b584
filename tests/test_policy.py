"""The egress policy as a value: what is accepted, what is refused and how, what it decides."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.guard import ALWAYS_DENIED, AddressGuard
from sandgate.policy import (
    ALL_TRAFFIC,
    MAX_ENTRIES,
    RESOLVER,
    Decision,
    EgressPolicy,
    Mode,
    NetworkSet,
    PolicyError,
    ResolverAccess,
    normalise_name,
    parse_policy,
)
from sandgate.reasons import Reason

DENY_ALL = [ALL_TRAFFIC]
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
networks = st.builds(
    lambda address, length: IPv4Network((address, length), strict=False),
    st.integers(2**24, 2**32 - 1),
    st.integers(0, 32),
).filter(lambda network: int(network.network_address) != 0 or network.prefixlen == 0)


def allowed(policy: EgressPolicy, address: str, name: str | None = None) -> bool:
    return policy.decide(IPv4Address(address), name).allowed


def test_without_entries_everything_passes() -> None:
    policy = parse_policy(None, None)
    assert policy == parse_policy([], [])
    assert allowed(policy, "8.8.8.8")
    assert policy.decide(IPv4Address("1.1.1.1")).reason is Reason.DEFAULT_ALLOW


def test_an_allow_list_without_a_deny_list_blocks_nothing() -> None:
    assert allowed(parse_policy(["1.1.1.1"], None), "8.8.8.8")


@pytest.mark.parametrize(
    ("allow", "deny"),
    [
        (["1.1.1.1"], ["1.1.1.1"]),
        (["1.1.1.1"], DENY_ALL),
        (["1.0.0.0/8"], ["1.1.1.1"]),
        (["1.1.1.1"], ["1.0.0.0/8"]),
        ([ALL_TRAFFIC], DENY_ALL),
        ([ALL_TRAFFIC, ALL_TRAFFIC], [ALL_TRAFFIC, "1.1.1.1"]),
    ],
)
def test_allow_beats_deny_however_specific(allow: list[str], deny: list[str]) -> None:
    assert allowed(parse_policy(allow, deny), "1.1.1.1")


def test_no_internet_is_denying_everything_and_allow_entries_still_win() -> None:
    policy = parse_policy(["1.1.1.1", "google.com"], ["9.9.9.9"], internet=False)
    assert allowed(policy, "1.1.1.1")
    assert not allowed(policy, "9.9.9.9")
    assert not allowed(policy, "8.8.8.8")
    assert allowed(policy, "8.8.8.8", "google.com")


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("google.com", "google.com", True),
        ("google.com", "www.google.com", False),
        ("Google.COM.", "google.com", True),
        ("*.mydomain.com", "a.mydomain.com", True),
        ("*.mydomain.com", "a.b.c.mydomain.com", True),
        ("*.mydomain.com", "mydomain.com", False),
        ("*.mydomain.com", "notmydomain.com", False),
        ("*", "anything.example", True),
    ],
)
def test_names_and_wildcards(pattern: str, name: str, matches: bool) -> None:
    policy = parse_policy([pattern], DENY_ALL)
    assert allowed(policy, "203.0.113.5", name) is matches


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("Example.COM", "example.com"),
        ("example.com.", "example.com"),
        ("a_b.example.com", "a_b.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.2.3.4", None),
        ("example..com", None),
        (".example.com", None),
        ("example.com..", None),
        ("-a.com", None),
        ("a\0.com", None),
        ("a b.com", None),
        ("exa\u212aple.com", None),  # the Kelvin sign, whose lower case is an ASCII k
        ("", None),
        (".", None),
        ("a" * 64 + ".com", None),
        ("a." * 127 + "com", None),
    ],
)
def test_what_counts_as_a_name(raw: str, name: str | None) -> None:
    assert normalise_name(raw) == name


@pytest.mark.parametrize(
    ("allow", "deny", "words"),
    [
        (["google.com"], None, "you must include 'ALL_TRAFFIC' in deny out"),
        (["google.com"], ["1.1.1.1"], "you must include 'ALL_TRAFFIC' in deny out"),
        (["*.google.com"], ["128.0.0.0/1"], "you must include 'ALL_TRAFFIC' in deny out"),
        (None, ["google.com"], "invalid denied CIDR google.com: names can only be allowed"),
        (None, ["google.com", ALL_TRAFFIC], "invalid denied CIDR google.com"),
        (None, ["1.2.3.4/33"], "invalid denied CIDR 1.2.3.4/33"),
        (["1.2.3.4/33"], DENY_ALL, "invalid allowed CIDR 1.2.3.4/33"),
        (["300.1.1.1"], DENY_ALL, "invalid allowed CIDR 300.1.1.1"),
        (["1.2.3"], DENY_ALL, "'1.2.3' in allowOut"),
        (["example.com:"], DENY_ALL, "'example.com:' in allowOut: '' is no port"),
        (["example.com:0"], DENY_ALL, "'example.com:0' in allowOut: '0' is no port"),
        (["example.com:080"], DENY_ALL, "in allowOut: '080' is no port"),
        (["example.com:65536"], DENY_ALL, "in allowOut: '65536' is no port"),
        (["example.com:ssh"], DENY_ALL, "in allowOut: 'ssh' is no port"),
        (["example.com:1:2"], DENY_ALL, "in allowOut: '1:2' is no port"),
        ([":22"], DENY_ALL, "':22' in allowOut: neither"),
        (["github.com:22"], None, "you must include 'ALL_TRAFFIC' in deny out"),
        (None, ["github.com:22"], "invalid denied CIDR github.com:22: names can only be allowed"),
        (["1.2.3.4:80"], DENY_ALL, "'1.2.3.4:80' in allowOut: ports are for names only"),
        (["1.2.3.0/24:80"], DENY_ALL, "'1.2.3.0/24:80' in allowOut: ports are for names only"),
        (["::1"], DENY_ALL, "'::1' in allowOut: IPv6"),
        (["2001:db8::/32"], DENY_ALL, "'2001:db8::/32' in allowOut: IPv6"),
        (None, ["::/0"], "invalid denied CIDR ::/0: IPv6"),
        (None, ["2001:db8::1"], "invalid denied CIDR 2001:db8::1: IPv6"),
        (None, ["1.2.3.4:80"], "invalid denied CIDR 1.2.3.4:80: ports are for names"),
        (None, ["1.2.3.4/08"], "invalid denied CIDR 1.2.3.4/08: leading zeros"),
        (["1.2.3.4/08"], DENY_ALL, "invalid allowed CIDR 1.2.3.4/08: leading zeros"),
        (["https://example.com"], DENY_ALL, "'https://example.com' in allowOut"),
        (["*example.com"], DENY_ALL, "'*example.com' in allowOut: a wildcard"),
        (["a.*.com"], DENY_ALL, "'a.*.com' in allowOut: a wildcard"),
        (["ex ample.com"], DENY_ALL, "'ex ample.com' in allowOut"),
        (["b\u00fccher.example"], DENY_ALL, "in allowOut: write an international name"),
        ([""], DENY_ALL, "'' in allowOut"),
        (["0.0.0.0"], DENY_ALL, "'0.0.0.0' in allowOut"),
        (None, ["0.0.0.0/24"], "'0.0.0.0/24' in denyOut"),
        ([7], DENY_ALL, "7 in allowOut: expected a string"),
        (["1.1.1.1"] * (MAX_ENTRIES + 1), DENY_ALL, "allowOut has 10001 entries"),
    ],
)
def test_malformed_entries_are_refused_by_name(
    allow: list[object] | None, deny: list[object] | None, words: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(allow, deny)
    assert words in str(caught.value)


ALLOWED, DENIED = Reason.ALLOWED_NAME, Reason.DENIED_ADDRESS


@pytest.mark.parametrize(
    ("entry", "name", "port", "rule"),
    [
        ("github.com:22", "github.com", 22, "github.com:22"),
        ("GitHub.com.:22", "github.com", 22, "github.com:22"),
        ("github.com:22", "github.com", 443, None),
        ("github.com:22", "www.github.com", 22, None),
        ("github.com:443", "github.com", 443, "github.com:443"),
        ("github.com:443", "github.com", 80, None),
        ("github.com", "github.com", 80, "github.com"),
        ("github.com", "github.com", 443, "github.com"),
        ("github.com", "github.com", 22, None),
        ("*.example.com:5432", "db.example.com", 5432, "*.example.com:5432"),
        ("*.example.com:5432", "example.com", 5432, None),
        ("*:22", "anything.example", 22, "*:22"),
        ("*:22", "anything.example", 443, None),
        ("*", "anything.example", 22, None),
    ],
)
def test_a_name_with_a_port_counts_on_that_port_alone(
    entry: str, name: str, port: int, rule: str | None
) -> None:
    decision = parse_policy([entry], DENY_ALL).decide(IPv4Address("203.0.113.5"), name, port)
    assert decision == (
        Decision(True, ALLOWED, rule) if rule else Decision(False, DENIED, ALL_TRAFFIC)
    )


@pytest.mark.parametrize(
    ("allow", "deny", "ports"),
    [
        (None, None, set()),
        (["1.1.1.1"], DENY_ALL, set()),
        (["a.example"], DENY_ALL, {80, 443}),
        (["a.example:443"], DENY_ALL, {443}),
        (["a.example:22", "*.b.example:5432", "1.1.1.1"], DENY_ALL, {22, 5432}),
        (["a.example", "a.example:22"], DENY_ALL, {80, 443, 22}),
    ],
)
def test_the_gateway_sees_the_ports_that_names_are_allowed_on(
    allow: list[str] | None, deny: list[str] | None, ports: set[int]
) -> None:
    assert parse_policy(allow, deny).gateway_ports == ports
    reporting = parse_policy(allow, deny, mode=Mode.REPORT)
    assert reporting.gateway_ports == ports | {80, 443}


def test_names_with_ports_are_resolved_by_the_entry_that_allows_them() -> None:
    policy = parse_policy(["a.example", "a.example:22", "*.b.example:22", "c.example:1"], DENY_ALL)
    names = ["a.example", "x.b.example", "c.example", "b.example"]
    assert [policy.resolves(name) for name in names] == [
        "a.example",
        "*.b.example:22",
        "c.example:1",
        None,
    ]
    assert policy.resolver is ResolverAccess.NAMES


SERVER, OTHER_SERVER = IPv4Address("1.1.1.1"), IPv4Address("9.9.9.9")


@pytest.mark.parametrize(
    ("allow", "servers", "resolvers", "upstream"),
    [
        (["a.example"], None, (RESOLVER,), None),
        (["a.example"], [], (), None),
        (["a.example"], ["1.1.1.1"], (SERVER,), (SERVER,)),
        (["a.example:22"], ["1.1.1.1", "8.8.8.8"], (RESOLVER, SERVER), (SERVER, RESOLVER)),
        (["a.example", "8.8.8.8"], ["1.1.1.1"], (RESOLVER, SERVER), (SERVER,)),
        (["a.example", "1.1.1.1"], ["1.1.1.1", "9.9.9.9"], (OTHER_SERVER,), (SERVER, OTHER_SERVER)),
        (["2.2.2.2"], ["1.1.1.1"], (), None),
        ([], ["1.1.1.1"], (), None),
    ],
)
def test_dns_servers_replace_the_resolver_where_names_are_allowed(
    allow: list[str],
    servers: list[str] | None,
    resolvers: tuple[IPv4Address, ...],
    upstream: tuple[IPv4Address, ...] | None,
) -> None:
    policy = parse_policy(allow, DENY_ALL, dns_servers=servers)
    assert (policy.resolvers, policy.upstream) == (resolvers, upstream)
    for server in (RESOLVER, SERVER, OTHER_SERVER):
        listed = server in resolvers and not policy.decide(server).allowed
        assert policy.decide_query(server, "a.example").allowed is (
            listed or policy.decide(server).allowed
        )
        if listed:
            assert policy.decide_query(server, "b.example").reason is Reason.NAME_NOT_ALLOWED
            assert policy.decide_query(server, None).reason is Reason.NAME_NOT_ALLOWED


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        (["dns.google"], "invalid entry 'dns.google' in dnsServers: write the IPv4 address"),
        (["1.1.1.0/24"], "invalid entry '1.1.1.0/24' in dnsServers"),
        (["::1"], "invalid entry '::1' in dnsServers"),
        (["0.0.0.0"], "invalid entry '0.0.0.0' in dnsServers"),
        ([1], "invalid entry 1 in dnsServers"),
        ([f"1.1.1.{n}" for n in range(11)], "dnsServers has 11 entries; at most 10"),
    ],
)
def test_malformed_dns_servers_are_refused_by_name(servers: list[object], words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(["a.example"], DENY_ALL, dns_servers=servers)
    assert words in str(caught.value)
    assert caught.value.field == "dnsServers"


@given(st.lists(networks, max_size=10), st.lists(networks, max_size=10), addresses)
def test_reporting_lets_everything_pass_and_says_what_would_have_been_refused(
    allow: list[IPv4Network], deny: list[IPv4Network], address: IPv4Address
) -> None:
    enforcing = EgressPolicy(NetworkSet(allow), NetworkSet(deny))
    reporting = replace(enforcing, mode=Mode.REPORT)
    strict, lenient = enforcing.decide(address), reporting.decide(address)
    assert lenient.allowed
    assert lenient.reported is not strict.allowed
    assert (lenient.reason, lenient.rule) == (strict.reason, strict.rule)
    assert reporting.decide_query(address, "a.example").allowed
    assert reporting.resolver is ResolverAccess.ALL


def test_host_bits_are_cleared_and_ranges_collapsed() -> None:
    policy = parse_policy(["1.2.3.4/24", "1.2.3.0/25", "255.255.255.0/24"], DENY_ALL)
    assert [str(network) for network in policy.allow.networks] == ["1.2.3.0/24", "255.255.255.0/24"]
    assert allowed(policy, "1.2.3.255")
    assert allowed(policy, "255.255.255.255")
    assert not allowed(policy, "1.2.4.0")


def test_a_thousand_of_each_work() -> None:
    ranges = [f"{a}.{b}.0.0/24" for a in range(20, 30) for b in range(100)]
    names = [f"host{i}.example.com" for i in range(1000)]
    policy = parse_policy([*ranges, *names], DENY_ALL)
    assert allowed(policy, "29.99.0.7")
    assert not allowed(policy, "29.99.1.7")
    assert allowed(policy, "9.9.9.9", "host999.example.com")


@pytest.mark.parametrize(
    ("allow", "deny", "internet", "access"),
    [
        (None, None, True, ResolverAccess.ALL),
        (None, None, False, ResolverAccess.NONE),
        (["1.1.1.1"], DENY_ALL, True, ResolverAccess.NONE),
        (["8.8.8.8"], DENY_ALL, True, ResolverAccess.ALL),
        (["google.com"], DENY_ALL, True, ResolverAccess.NAMES),
        (["google.com", "8.8.8.8"], DENY_ALL, True, ResolverAccess.ALL),
        (["google.com"], None, False, ResolverAccess.NAMES),
        (None, ["8.8.8.8"], True, ResolverAccess.NONE),
    ],
)
def test_what_the_resolver_answers(
    allow: list[str] | None, deny: list[str] | None, internet: bool, access: ResolverAccess
) -> None:
    assert parse_policy(allow, deny, internet=internet).resolver is access


@given(st.lists(networks, max_size=30), st.lists(networks, max_size=30), addresses)
def test_decisions_are_those_of_the_naive_rule(
    allow: list[IPv4Network], deny: list[IPv4Network], address: IPv4Address
) -> None:
    policy = EgressPolicy(allow=NetworkSet(allow), deny=NetworkSet(deny))
    in_allow = any(address in network for network in allow)
    in_deny = any(address in network for network in deny)
    assert policy.decide(address).allowed is (in_allow or not in_deny)


@given(st.lists(networks, max_size=10), st.lists(networks, max_size=10))
def test_a_policy_survives_the_way_between_processes(
    allow: list[IPv4Network], deny: list[IPv4Network]
) -> None:
    entries = ["*.a.example", "b.example", "*", "b.example:22", "*.c.example:5432", "*:1"]
    policy = parse_policy(
        [*map(str, allow), *entries], DENY_ALL, dns_servers=["1.1.1.1"], mode=Mode.REPORT
    )
    assert EgressPolicy.from_json(policy.to_json()) == policy
    policy = parse_policy(None, [*map(str, deny)])
    assert EgressPolicy.from_json(policy.to_json()) == policy


# The guard

SANDBOXES = IPv4Network("198.18.0.0/16")


@pytest.mark.parametrize("network", ALWAYS_DENIED, ids=str)
def test_always_denied_ranges_end_where_they_should(network: IPv4Network) -> None:
    guard = AddressGuard(SANDBOXES)
    assert guard.denies(network.network_address)
    assert guard.denies(network.broadcast_address)
    for neighbour in (int(network.network_address) - 1, int(network.broadcast_address) + 1):
        if 0 < neighbour < 2**32:
            address = IPv4Address(neighbour)
            assert guard.denies(address) is any(address in other for other in ALWAYS_DENIED)


def test_the_machines_own_addresses_are_denied() -> None:
    guard = AddressGuard(SANDBOXES)
    own = IPv4Address("203.0.113.9")
    assert not guard.denies(own)
    assert guard.denies(own, own=[own])


def test_the_operator_opens_a_range_but_never_the_sandboxes() -> None:
    guard = AddressGuard(SANDBOXES, (IPv4Network("10.1.0.0/16"), IPv4Network("198.18.0.0/15")))
    assert not guard.denies(IPv4Address("10.1.2.3"))
    assert guard.denies(IPv4Address("10.2.0.1"))
    assert guard.denies(IPv4Address("198.18.0.16"))
    assert not guard.denies(IPv4Address("198.19.0.1"))
