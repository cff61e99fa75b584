"""The policy that covers what was seen."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.decisions.suggest import Seen, suggest
from sandgate.guard import ALWAYS_DENIED
from sandgate.policy import NetworkSet, parse_policy
from sandgate.reasons import Reason

CLOSED = NetworkSet(ALWAYS_DENIED)
LABELS = st.text("abc0", min_size=1, max_size=3)
NAMES = st.builds(
    lambda labels, top: ".".join([*labels, top]),
    st.lists(LABELS, min_size=1, max_size=3),
    st.sampled_from(["test", "com", "org"]),
)
POLICY_REASONS = (Reason.DENIED_ADDRESS, Reason.NAME_NOT_ALLOWED, Reason.NO_RESOLVER)


@st.composite
def seen(draw: st.DrawFn) -> Seen:
    protocol = draw(st.sampled_from(["tls", "http", "dns", "tcp", "udp", "icmp"]))
    address = draw(st.ip_addresses(v=4))
    assert isinstance(address, IPv4Address)
    port = {"tls": 443, "http": 80, "dns": 53, "icmp": 0}.get(protocol, draw(st.integers(1, 65535)))
    name = draw(NAMES if protocol == "dns" else st.none() | NAMES)
    if protocol in ("tcp", "udp", "icmp"):
        name = None
    if address in CLOSED and protocol != "dns":
        return Seen(protocol, str(address), port, None, False, Reason.ALWAYS_DENIED)
    allowed = draw(st.booleans())
    reason = Reason.DEFAULT_ALLOW if allowed else draw(st.sampled_from(POLICY_REASONS))
    return Seen(protocol, str(address), port, name, allowed, reason)


@given(st.lists(seen(), max_size=30), st.booleans())
def test_it_admits_all_that_was_recorded_and_nothing_that_is_always_denied(
    items: list[Seen], wildcards: bool
) -> None:
    found = suggest(items, wildcards=wildcards)
    policy = parse_policy(found.allow_out, found.deny_out)
    for item in items:
        address = IPv4Address(item.destination)
        if item.reason is Reason.ALWAYS_DENIED:
            assert not policy.decide(address).allowed
        elif item.protocol == "dns":
            assert item.name is not None and policy.names.match(item.name) is not None
        else:
            assert policy.decide(address, item.name).allowed


@given(st.lists(seen(), max_size=20))
def test_nothing_is_in_it_that_was_not_seen(items: list[Seen]) -> None:
    policy = parse_policy(*suggest(items).as_json().values())
    useful = [item for item in items if item.coverable]
    assert policy.names.exact == {item.name for item in useful if item.name is not None}
    assert not policy.names.suffixes and not policy.names.every
    addresses = {address for network in policy.allow.networks for address in network}
    nameless = (item for item in useful if item.name is None and item.protocol != "dns")
    assert addresses == {IPv4Address(item.destination) for item in nameless}


def row(protocol: str, destination: str, port: int, name: str | None = None, **more: Any) -> Seen:
    return Seen(
        protocol,
        destination,
        port,
        name,
        more.get("allowed", True),
        more.get("reason", Reason.DEFAULT_ALLOW),
    )


@pytest.mark.parametrize(
    ("items", "options", "expected"),
    [
        ([], {}, []),
        ([row("tls", "192.0.2.1", 443, "A.test.")], {}, ["a.test"]),
        ([row("http", "192.0.2.1", 80, "a.test"), row("tls", "192.0.2.1", 443)], {},
         ["a.test", "192.0.2.1"]),
        ([row("tls", "192.0.2.1", 8443, "a.test"), row("dns", "8.8.8.8", 53, "a.test")], {},
         ["a.test:8443"]),
        ([row("tcp", "192.0.2.2", 22), row("udp", "192.0.2.3", 9)], {}, ["192.0.2.2/31"]),
        ([row("tls", "192.0.2.1", 443, f"{n}.a.test") for n in "xy"], {}, ["x.a.test", "y.a.test"]),
        ([row("tls", "192.0.2.1", 443, f"{n}.a.test") for n in "xy"], {"wildcards": True},
         ["*.a.test"]),
        ([row("tls", "192.0.2.1", 443, f"{n}.test") for n in "xy"], {"wildcards": True},
         ["x.test", "y.test"]),
        ([row("tcp", "192.0.2.1", 1, allowed=False, reason=Reason.DENIED_ADDRESS)], {},
         ["192.0.2.1"]),
        ([row("tcp", "192.0.2.1", 1, allowed=False, reason=Reason.DENIED_ADDRESS)],
         {"passed": True}, []),
        ([row("tcp", "::", 0, allowed=False, reason=Reason.IPV6)], {}, []),
        ([row("tls", "10.0.0.1", 443, "inner.test", allowed=False, reason=Reason.ALWAYS_DENIED)],
         {}, []),
    ],
)  # fmt: skip
def test_examples(items: list[Seen], options: dict[str, bool], expected: list[str]) -> None:
    assert list(suggest(items, **options).allow_out) == expected


def test_it_can_be_pasted() -> None:
    found = suggest([row("tls", "192.0.2.1", 443, "a.test")])
    scope: dict[str, Any] = {}
    exec(found.as_python(), scope)
    assert scope["network"] == {"allow_out": ["a.test"], "deny_out": ["0.0.0.0/0"]}
    assert found.as_json() == {"allowOut": ["a.test"], "denyOut": ["0.0.0.0/0"]}
