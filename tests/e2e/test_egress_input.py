"""What a policy may say: at create, and by PUT on a running sandbox."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from e2b import ALL_TRAFFIC, Sandbox, SandboxException

from e2e.box import DENY_ALL, Box
from internet import Internet, Record

_LONG = "a" * 64 + ".com"

REJECTED: list[tuple[list[str], list[str], str, str]] = [
    # allow, deny, what the message names, why
    (["google.com"], [], "ALL_TRAFFIC", "deny out"),
    (["google.com"], ["8.8.8.8"], "ALL_TRAFFIC", "deny out"),
    (["*.google.com", "1.1.1.1"], [], "ALL_TRAFFIC", "deny out"),
    (["*"], ["128.0.0.0/1"], "ALL_TRAFFIC", "deny out"),
    ([], ["google.com"], "google.com", "denied CIDR"),
    ([], ["google.com", ALL_TRAFFIC], "google.com", "only be allowed"),
    ([], ["*.google.com"], "*.google.com", "only be allowed"),
    ([], ["1.2.3.4/33"], "1.2.3.4/33", "CIDR"),
    ([], ["300.1.1.1"], "300.1.1.1", "CIDR"),
    ([], ["2001:db8::/32"], "2001:db8::/32", "IPv6"),
    ([], ["0.0.0.0"], "0.0.0.0", "no destination"),
    ([], ["0.0.0.0/8"], "0.0.0.0/8", "no destination"),
    (["1.2.3.4/33"], DENY_ALL, "1.2.3.4/33", "CIDR"),
    (["1.2.3.4/x"], DENY_ALL, "1.2.3.4/x", "not a URL or path"),
    (["256.1.1.1"], DENY_ALL, "256.1.1.1", "CIDR"),
    (["0.0.0.0"], DENY_ALL, "0.0.0.0", "no destination"),
    (["google.com:0"], DENY_ALL, "google.com:0", "no port"),
    (["1.1.1.1:53"], DENY_ALL, "1.1.1.1:53", "ports"),
    (["https://google.com"], DENY_ALL, "https://google.com", "URL"),
    (["google.com/mail"], DENY_ALL, "google.com/mail", "path"),
    (["2001:4860:4860::8888"], DENY_ALL, "2001:4860:4860::8888", "IPv6"),
    (["2001:db8::/32"], DENY_ALL, "2001:db8::/32", "IP"),
    (["::"], DENY_ALL, "::", "IPv6"),
    ([""], DENY_ALL, "''", "host name"),
    ([" google.com"], DENY_ALL, "' google.com'", "host name"),
    (["a..b"], DENY_ALL, "a..b", "host name"),
    (["-google.com"], DENY_ALL, "-google.com", "host name"),
    (["goo gle.com"], DENY_ALL, "goo gle.com", "host name"),
    ([_LONG], DENY_ALL, _LONG, "host name"),
    (["w*.google.com"], DENY_ALL, "w*.google.com", "wildcard"),
    (["*.*.google.com"], DENY_ALL, "*.*.google.com", "wildcard"),
    (["bücher.example"], DENY_ALL, "bücher.example", "xn--"),
]

UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("rules", {"rules": {"api.example.com": [{"transform": {"headers": {"X-A": "b"}}}]}}),
    ("egressProxy", {"egress_proxy": {"address": "proxy.example.com:1080"}}),
]


@pytest.mark.parametrize(("allow", "deny", "entry", "why"), REJECTED)
def test_a_bad_entry_is_refused_with_the_entry_and_the_reason(
    shared_box: Box, allow: list[str], deny: list[str], entry: str, why: str
) -> None:
    with pytest.raises(SandboxException) as refusal:
        shared_box.policy(allow, deny)
    assert refusal.value.status_code == 400
    assert entry in str(refusal.value) and why in str(refusal.value)


def test_names_need_deny_all_in_the_words_of_e2b(shared_box: Box) -> None:
    with pytest.raises(SandboxException) as refusal:
        shared_box.policy(["google.com"])
    assert str(refusal.value) == (
        "400: When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in "
        "deny out to block all other traffic."
    )


@pytest.mark.parametrize(
    ("allow", "deny", "entry"),
    [(["google.com"], [], "ALL_TRAFFIC"), (["1.1.1.1:80"], DENY_ALL, "1.1.1.1:80")],
)
def test_create_refuses_what_put_refuses_and_makes_nothing(
    node: object, allow: list[str], deny: list[str], entry: str
) -> None:
    with pytest.raises(SandboxException, match=entry) as refusal:
        Sandbox.create(network={"allow_out": allow, "deny_out": deny}, metadata={"test": "refused"})
    assert refusal.value.status_code == 400
    listed = Sandbox.list().next_items()
    assert not [sandbox for sandbox in listed if sandbox.metadata.get("test") == "refused"]


def test_a_refused_put_leaves_the_policy_as_it_was(box: Box) -> None:
    box.policy(["1.1.1.1"], DENY_ALL)
    with pytest.raises(SandboxException):
        box.policy(["not a name"], DENY_ALL)
    assert box.probe("tcp", "1.1.1.1", 8080, "ping").outcome == "answered"
    assert box.probe("tcp", "9.9.9.9", 8080, "ping").refused


@pytest.mark.parametrize(("field", "network"), UNSUPPORTED, ids=[name for name, _ in UNSUPPORTED])
def test_create_refuses_fields_that_are_not_supported(
    node: object, field: str, network: Any
) -> None:
    with pytest.raises(SandboxException, match=field) as refusal:
        Sandbox.create(network=network)
    assert refusal.value.status_code == 400
    assert "not supported" in str(refusal.value)


@pytest.mark.parametrize(("field", "network"), UNSUPPORTED)
def test_put_refuses_fields_that_are_not_supported(
    shared_box: Box, field: str, network: dict[str, Any]
) -> None:
    with pytest.raises(SandboxException, match=field) as refusal:
        shared_box.update(network)
    assert refusal.value.status_code == 400


def test_create_refuses_workload_identity(node: object) -> None:
    iam: Any = {"tokens": {"aws": {"audience": "sts.example.com", "token_type": "JWT-SVID"}}}
    with pytest.raises(SandboxException, match="iam") as refusal:
        Sandbox.create(iam=iam)
    assert refusal.value.status_code == 400


def test_a_policy_given_at_create_holds_and_is_reported(
    make_box: Callable[..., Box], internet: Internet
) -> None:
    box = make_box(network={"allow_out": ["1.1.1.1"], "deny_out": DENY_ALL})
    assert box.probe("tcp", "1.1.1.1", 8080, "ping").outcome == "answered"
    assert box.probe("tcp", "9.9.9.9", 8080, "ping").refused
    network = box.sandbox.get_info().network
    assert network is not None
    assert network["allow_out"] == ["1.1.1.1"] and network["deny_out"] == DENY_ALL
    box.sandbox.kill()


def test_internet_off_at_create_denies_all_but_allowed_entries(
    make_box: Callable[..., Box], internet: Internet
) -> None:
    """Names need no explicit deny then."""
    box = make_box(
        allow_internet_access=False, network={"allow_out": ["api.example.com", "1.1.1.1"]}
    )
    answer = box.fetch("https://api.example.com/")
    assert answer is not None and answer["server"] == "93.184.216.40"
    assert box.probe("tcp", "1.1.1.1", 8080, "ping").outcome == "answered"
    assert box.probe("tcp", "9.9.9.9", 8080, "ping").refused
    assert box.probe("udp", "9.9.9.9", 9999).refused
    assert box.sandbox.get_info().allow_internet_access is False
    assert not internet.contacts(destination="9.9.9.9")
    box.sandbox.kill()


@pytest.mark.parametrize("internet_access", [None, True])
def test_an_empty_policy_and_internet_on_restrict_nothing(
    box: Box, internet_access: bool | None
) -> None:
    box.policy([], [], internet_access)
    assert box.probe("tcp", "9.9.9.9", 8080, "ping").outcome == "answered"


def test_entries_are_normalised(box: Box) -> None:
    """A trailing dot, upper case, and host bits in a CIDR."""
    box.policy(["API.Example.COM.", "*.MyDomain.com.", "8.8.8.77/24"], DENY_ALL)
    for url, server in (
        ("https://api.example.com/", "93.184.216.40"),
        ("https://a.mydomain.com/", "185.199.108.11"),
    ):
        answer = box.fetch(url)
        assert answer is not None and answer["server"] == server
    assert box.probe("tcp", "8.8.8.9", 8080, "ping").outcome == "answered"
    assert box.probe("tcp", "8.8.9.9", 8080, "ping").refused


def test_duplicates_and_overlaps_are_accepted(box: Box) -> None:
    box.policy(["1.1.1.1", "1.1.1.1", "1.1.1.0/24", "255.255.255.255"], DENY_ALL * 2)
    assert box.probe("tcp", "1.1.1.1", 8080, "ping").outcome == "answered"
    assert box.probe("tcp", "9.9.9.9", 8080, "ping").refused


def test_a_thousand_ranges_and_a_thousand_names_work_together(box: Box, internet: Internet) -> None:
    # Every second range, so that none merge.
    ranges = [f"11.{n // 100}.{n % 100 * 2}.0/24" for n in range(1000)]
    names = [f"n{n}.thousand.example" for n in range(1000)]
    internet.set_name("n777.thousand.example", Record(addresses=("93.184.216.77",)))
    internet.set_name("n1000.thousand.example", Record(addresses=("93.184.216.78",)))
    box.policy(ranges + names, DENY_ALL)
    seen = box.probes(
        "tcp",
        ["11.7.154.9", 8080, "ping"],
        ["11.9.198.255", 8080, "ping"],
        ["11.7.155.9", 8080, "ping"],
        ["11.10.0.1", 8080, "ping"],
    )
    assert [one.outcome for one in seen[:2]] == ["answered"] * 2
    assert all(one.refused for one in seen[2:])
    answer = box.fetch("https://n777.thousand.example/")
    assert answer is not None and answer["server"] == "93.184.216.77"
    assert box.fetch("https://n1000.thousand.example/") is None
