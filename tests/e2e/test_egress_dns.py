"""DNS from inside: the gateway answers at 8.8.8.8, and only what the policy allows."""

from __future__ import annotations

import pytest

from e2e.box import DENY_ALL, Box
from internet import UPSTREAM_DNS, Internet

TRANSPORTS = pytest.mark.parametrize("transport", ["+notcp", "+tcp"])


@pytest.mark.parametrize(
    ("transport", "name", "address"),
    [("+notcp", "one.one.one.one", "1.1.1.1 1.0.0.1"), ("+tcp", "dns.google", "8.8.8.8 8.8.4.4")],
)
def test_without_a_policy_everything_resolves(
    box: Box, internet: Internet, transport: str, name: str, address: str
) -> None:
    assert box.sh("cat /etc/resolv.conf").stdout.split()[:2] == ["nameserver", "8.8.8.8"]
    assert sorted(box.dig(transport, name).split()) == sorted(f"NOERROR {address}".split())
    assert box.dig(transport, "nosuch.example.com") == "NXDOMAIN"
    assert box.dig(transport, "@8.8.4.4", "example.com") == "NOERROR 93.184.216.34"
    assert not internet.contacts(destination="8.8.8.8")  # the gateway answered
    assert internet.contacts(kind="query", destination=UPSTREAM_DNS, name=name)


@TRANSPORTS
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("google.com", "NOERROR 142.250.74.14"),
        ("GOOGLE.COM", "NOERROR 142.250.74.14"),
        ("www.google.com", "REFUSED"),
        ("a.b.mydomain.com", "NOERROR 185.199.108.11"),
        ("mydomain.com", "REFUSED"),
        ("cloudflare.com", "REFUSED"),
        ("alias.example.com", "NOERROR 93.184.216.40"),
        ("cdn.example.com", "NOERROR 104.16.200.7"),
        ("api.example.com", "REFUSED"),
        ("several.example.com", "NOERROR 203.0.113.200 93.184.216.41"),
        ("secret.tunnel.example.net", "REFUSED"),
    ],
)
def test_with_names_allowed_just_these_resolve(
    box: Box, internet: Internet, transport: str, name: str, answer: str
) -> None:
    box.names(
        *("google.com", "*.mydomain.com", "alias.example.com", "cdn.example.com"),
        "several.example.com",
    )
    assert sorted(box.dig(transport, name).split()) == sorted(answer.split())
    if answer == "REFUSED":
        assert not internet.contacts(kind="query")


@pytest.mark.parametrize("kind", ["TXT", "AAAA", "MX", "NS", "HTTPS", "ANY", "PTR"])
def test_a_refused_name_is_refused_for_every_type(box: Box, internet: Internet, kind: str) -> None:
    """Any type can carry data out in its question."""
    box.names("google.com")
    assert box.dig("+notcp", "-t", kind, "data.tunnel.example.net") == "REFUSED"
    assert not internet.contacts(kind="query")


@pytest.mark.parametrize(
    ("kind", "status"), [("AAAA", "NOERROR"), ("HTTPS", "NOERROR"), ("TXT", "REFUSED")]
)
def test_an_allowed_name_has_ipv4_addresses_and_nothing_else(
    box: Box, internet: Internet, kind: str, status: str
) -> None:
    box.names("example.com", "text.example.com")
    name = "text.example.com" if kind == "TXT" else "example.com"
    assert box.dig("-t", kind, name) == status
    assert box.sh(f"dig +short -t {kind} {name}").stdout == ""


def test_large_answers_come_over_tcp(box: Box) -> None:
    assert box.sh("dig +short TXT large.example.com").stdout.count("x") == 3000


def test_other_resolvers_are_not_reachable_by_names_alone(box: Box, internet: Internet) -> None:
    box.names("google.com")
    for server in ("8.8.4.4", "1.1.1.1", UPSTREAM_DNS):
        for transport in ("+notcp", "+tcp"):
            assert box.dig(transport, f"@{server}", "google.com") == "NONE"
    assert not internet.contacts(kind="query")


@TRANSPORTS
def test_a_listed_resolver_answers_everything(box: Box, transport: str) -> None:
    for entry in ("8.8.8.8", "8.8.8.0/24"):
        box.names("api.example.com", entry)
        assert box.dig(transport, "cloudflare.com") == "NOERROR 104.16.132.229"
    answer = box.fetch("https://api.example.com/")
    assert answer is not None and answer["server"] == "93.184.216.40"
    assert box.fetch("https://cloudflare.com/") is None


@TRANSPORTS
@pytest.mark.parametrize(
    ("allow", "internet_access"),
    [(["1.1.1.1"], None), ([], None), ([], False), (["1.1.1.1"], False)],
    ids=["IP list", "deny all", "internet off", "internet off and IP list"],
)
def test_ip_lists_and_internet_off_have_no_dns(
    box: Box, internet: Internet, transport: str, allow: list[str], internet_access: bool | None
) -> None:
    box.policy(allow, None if internet_access is False else DENY_ALL, internet_access)
    assert box.dig(transport, "google.com") == "NONE"
    assert box.probe("udp", "8.8.8.8", 53).refused
    assert box.probe("tcp", "8.8.8.8", 53, "x").refused
    assert not internet.contacts()


def test_internet_off_with_names_resolves_just_these(box: Box) -> None:
    box.policy(["google.com"], internet=False)
    assert box.dig("google.com") == "NOERROR 142.250.74.14"
    assert box.dig("cloudflare.com") == "REFUSED"


def test_a_denied_resolver_is_denied(box: Box, internet: Internet) -> None:
    """`deny 8.8.8.8` alone takes DNS away, as in E2B; the rest of the internet stays."""
    box.policy([], ["8.8.8.8"])
    assert box.dig("google.com") == "NONE"
    assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"
    assert not internet.contacts(kind="query")


def test_nonsense_to_the_resolver_does_not_disturb_it(box: Box) -> None:
    box.names("google.com")
    for data in ("", "x", "\x00" * 12, "\xff" * 600):
        box.probe("udp", "8.8.8.8", 53, data, 0.2)
        box.probe("tcp", "8.8.8.8", 53, "\x00\x05hello", data or "y")
    assert box.dig("google.com") == "NOERROR 142.250.74.14"
