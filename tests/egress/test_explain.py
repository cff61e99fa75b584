"""What would become of a connection: the same words as those of traffic."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from sandgate.egress.explain import TargetError, explain, parse_target
from sandgate.guard import AddressGuard
from sandgate.policy import Mode, parse_policy
from sandgate.reasons import Reason

GUARD = AddressGuard(IPv4Network("198.18.0.0/16"))
PUBLIC, PRIVATE = IPv4Address("93.184.216.34"), IPv4Address("10.0.0.7")
ALL = ["0.0.0.0/0"]


YES, NO = True, False
BY_NAME, DENIED = Reason.ALLOWED_NAME, Reason.DENIED_ADDRESS
WEB, DB = ["example.com"], ["example.com:5432"]
SSH = ["example.com:443", "example.com:80"]

CASES: list[tuple[list[str], list[str], str, IPv4Address | None, str, bool, Reason, str | None]] = [
    ([], [], "https://example.com", PUBLIC, "kernel", YES, Reason.DEFAULT_ALLOW, None),
    (WEB, ALL, "https://example.com/x?y", PUBLIC, "gateway", YES, BY_NAME, "example.com"),
    (WEB, ALL, "http://EXAMPLE.com.", PUBLIC, "gateway", YES, BY_NAME, "example.com"),
    (WEB, ALL, "https://x.com", PUBLIC, "resolver", NO, Reason.NAME_NOT_ALLOWED, None),
    (WEB, ALL, "https://example.com:8443", PUBLIC, "kernel", NO, DENIED, ALL[0]),
    (WEB, ALL, "tcp://example.com:443", PUBLIC, "gateway", NO, DENIED, ALL[0]),
    (WEB, ALL, "https://example.com", PRIVATE, "kernel", NO, Reason.ALWAYS_DENIED, None),
    (WEB, ALL, "udp://example.com:443", PUBLIC, "kernel", NO, DENIED, ALL[0]),
    (DB, ALL, "example.com:5432", PUBLIC, "gateway", YES, BY_NAME, DB[0]),
    (DB, ALL, "https://example.com", PUBLIC, "kernel", NO, DENIED, ALL[0]),
    (SSH, ALL, "tcp://example.com:443", PUBLIC, "gateway", YES, BY_NAME, SSH[0]),
    ([*WEB, "x.com:443"], ALL, "tcp://example.com:443", PUBLIC, "gateway", NO, DENIED, ALL[0]),
    (SSH, ALL, "tcp://example.com:80", PUBLIC, "gateway", NO, DENIED, ALL[0]),
    (["1.1.1.1"], ALL, "icmp://1.1.1.1", None, "kernel", YES, Reason.ALLOWED_ADDRESS, "1.1.1.1/32"),
    (["1.1.1.1"], ALL, "https://example.com", PUBLIC, "resolver", NO, Reason.NO_RESOLVER, None),
    ([], [], "tcp://169.254.169.254:80", None, "kernel", NO, Reason.ALWAYS_DENIED, None),
]


@pytest.mark.parametrize(
    ("allow", "deny", "target", "leads_to", "path", "allowed", "reason", "rule"), CASES
)
def test_a_connection_is_explained_in_the_words_of_its_decision(
    allow: list[str],
    deny: list[str],
    target: str,
    leads_to: IPv4Address | None,
    path: str,
    allowed: bool,
    reason: Reason,
    rule: str | None,
) -> None:
    policy = parse_policy(allow, deny)
    parsed = parse_target(target)
    addresses = [parsed.host if isinstance(parsed.host, IPv4Address) else leads_to]
    found = explain(
        policy,
        parsed,
        [address for address in addresses if address is not None],
        lambda address, _: GUARD.denies(address),
    )
    assert (found.path, found.allowed, found.reason, found.rule) == (path, allowed, reason, rule)


@pytest.mark.parametrize(
    ("servers", "allowed", "reason"),
    [
        (["9.9.9.9"], True, Reason.ALLOWED_NAME),
        (["1.1.1.1"], True, Reason.ALLOWED_NAME),  # reached as an address
        ([], False, Reason.NO_RESOLVER),
    ],
)
def test_a_name_is_asked_of_the_resolvers_that_the_policy_lists(
    servers: list[str], allowed: bool, reason: Reason
) -> None:
    policy = parse_policy(["example.com", "1.1.1.1"], ALL, dns_servers=servers)
    found = explain(policy, parse_target("https://example.com"), [PUBLIC], lambda *_: False)
    assert (found.allowed, found.reason) == (allowed, reason)


def test_a_policy_that_only_reports_says_so() -> None:
    policy = parse_policy(["example.com"], ALL, mode=Mode.REPORT)
    found = explain(policy, parse_target("https://other.example"), [PUBLIC], lambda *_: False)
    assert found.allowed and found.reported and found.reason is Reason.DENIED_ADDRESS
    assert not explain(policy, parse_target("https://other.example"), [], lambda *_: False).allowed


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("example.com", "no port"),
        ("https://", "no host"),
        ("ftp://example.com", "scheme 'ftp'"),
        ("https://[::1]/", "neither an IPv4"),
        ("https://exa mple.com", "neither an IPv4"),
        ("https://exämple.com", "xn--"),
        ("tcp://example.com:99999", "Port out of range"),
    ],
)
def test_what_is_no_target_is_refused_with_examples(text: str, why: str) -> None:
    with pytest.raises(TargetError, match=why) as error:
        parse_target(text)
    assert "write https://example.com" in str(error.value)
