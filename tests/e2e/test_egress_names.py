"""Rules by name: which names match, how they are shown, and where a connection then leads."""

from __future__ import annotations

import pytest

from e2e.box import DENY_ALL, Box
from internet import ATTACKER, Internet
from internet.names import UNREACHABLE

API = "93.184.216.40"
GOOGLE = "142.250.74.14"

# policy, name, address that DNS gives for it, allowed?
MATCHES: list[tuple[list[str], str, str, bool]] = [
    (["google.com"], "google.com", GOOGLE, True),
    (["google.com"], "www.google.com", "142.250.74.36", False),
    (["google.com"], "cloudflare.com", "104.16.132.229", False),
    (["GOOGLE.com"], "gOOgle.COM", GOOGLE, True),
    (["*.mydomain.com"], "www.mydomain.com", "185.199.108.11", True),
    (["*.mydomain.com"], "very.deep.down.mydomain.com", "185.199.108.11", True),
    (["*.mydomain.com"], "mydomain.com", "185.199.108.10", False),
    (["*.mydomain.com"], "notmydomain.com", "185.199.108.12", False),
    (["*.mydomain.com", "mydomain.com"], "mydomain.com", "185.199.108.10", True),
    (["*"], "google.com", GOOGLE, True),
    (["*"], "cloudflare.com", "104.16.132.229", True),
    (["*.com"], "www.google.com", "142.250.74.36", True),
]


def _get(host: str, path: str = "/") -> str:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"


@pytest.mark.parametrize(("policy", "name", "address", "allowed"), MATCHES)
def test_names_match_by_host_and_by_sni(
    box: Box, internet: Internet, policy: list[str], name: str, address: str, allowed: bool
) -> None:
    box.names(*policy)
    for seen in (
        box.probe("tcp", address, 80, _get(name)),
        box.probe("tls", address, name, name),
    ):
        if allowed:
            assert seen.answer["server"] == address
        else:
            assert seen.refused, seen
    assert bool(internet.contacts(destination=address)) is allowed
    for scheme in ("http", "https"):
        assert (box.fetch(f"{scheme}://{name}/") is not None) is allowed


@pytest.mark.parametrize(
    "host",
    [
        "api.example.com",
        "API.Example.COM",
        "api.example.com:80",
        "api.example.com.",
        "api.example.com.:80",
    ],
)
def test_a_host_is_compared_without_case_port_and_trailing_dot(box: Box, host: str) -> None:
    box.names("api.example.com")
    assert box.probe("tcp", API, 80, _get(host)).answer["server"] == API


@pytest.mark.parametrize("claimed", [ATTACKER, "1.1.1.1", "10.66.0.3"])
def test_a_shown_name_leads_to_that_name_whatever_address_was_claimed(
    box: Box, internet: Internet, claimed: str
) -> None:
    box.names("api.example.com")
    tls = box.probe("tls", claimed, "api.example.com", "api.example.com")
    plain = box.probe("tcp", claimed, 80, _get("api.example.com"))
    for seen in (tls, plain):
        if claimed == "10.66.0.3":  # always denied, before any name can be shown
            assert seen.refused
        else:
            assert seen.answer["server"] == API
    assert not internet.contacts(destination=claimed)


def test_resolve_and_hosts_file_do_not_lead_to_the_attacker(box: Box, internet: Internet) -> None:
    box.names("api.example.com")
    resolve = ("--resolve", f"api.example.com:443:{ATTACKER}")
    answer = box.fetch("https://api.example.com/", *resolve)
    assert answer is not None and answer["server"] == API
    box.sh(f"echo '{ATTACKER} api.example.com' >> /etc/hosts", user="root")
    try:
        answer = box.fetch("https://api.example.com/")
    finally:
        box.sh(
            "sed '/api.example.com/d' /etc/hosts > /tmp/h && cat /tmp/h > /etc/hosts", user="root"
        )
    assert answer is not None and answer["server"] == API
    assert not internet.contacts(destination=ATTACKER)


def test_another_name_inside_tls_still_reaches_the_shown_names_server(
    box: Box, internet: Internet
) -> None:
    box.names("api.example.com")
    seen = box.probe("tls", ATTACKER, "api.example.com", "attacker.example.net")
    assert seen.answer["server"] == API
    assert not internet.contacts(destination=ATTACKER)


def test_ip_rules_decide_for_a_name_that_is_not_allowed(box: Box, internet: Internet) -> None:
    box.names("api.example.com", "142.250.74.0/24")
    assert box.probe("tls", GOOGLE, "google.com", "google.com").answer["server"] == GOOGLE
    assert box.probe("tcp", GOOGLE, 80, _get("google.com")).answer["server"] == GOOGLE
    assert box.probe("tls", "1.1.1.1", "google.com", "google.com").refused
    assert not internet.contacts(destination="1.1.1.1")


@pytest.mark.parametrize(("port", "name"), [(8080, "TCP"), (22, "TCP"), (5432, "TCP")])
def test_other_tcp_ports_go_by_address_only(box: Box, port: int, name: str) -> None:
    box.names("api.example.com", "140.82.121.0/24")
    assert box.probe("tcp", API, port, _get("api.example.com")).refused
    assert box.probe("tcp", "140.82.121.3", port, "x").outcome == "answered"


def test_udp_quic_and_icmp_go_by_address_only(box: Box, internet: Internet) -> None:
    box.names("api.example.com", "*")
    for port in (443, 80, 9999):
        assert box.probe("udp", API, port).refused
    assert box.probe("ping", API).refused
    assert not internet.contacts(destination=API)


def test_the_resolvers_address_is_open_for_dns_alone(box: Box, internet: Internet) -> None:
    """E2B opens all of its ports; DNS over HTTPS would then pass every filter."""
    box.names("api.example.com")
    assert box.probe("tls", "8.8.8.8", None, "8.8.8.8").refused
    assert box.probe("tls", "8.8.8.8", "dns.google", "dns.google").refused
    assert box.probe("tcp", "8.8.8.8", 8080, "x").refused
    assert box.probe("tcp", "8.8.8.8", 853, "x").refused
    assert box.probe("udp", "8.8.8.8", 443).refused
    assert not internet.contacts(destination="8.8.8.8")


def test_all_addresses_of_a_name_are_tried(box: Box) -> None:
    box.names("several.example.com", "dead.example.com")
    answer = box.fetch("https://several.example.com/")
    assert answer is not None and answer["server"] == "93.184.216.41"
    seen = box.probe("tls", UNREACHABLE, "dead.example.com", "dead.example.com")
    assert seen.outcome == "reset"


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("private.example.com", "10.66.0.3"),
        ("metadata.example.com", "169.254.169.254"),
        ("loopback.example.com", "127.0.0.1"),
        ("zero.example.com", "0.0.0.0"),
        ("shared.example.com", "100.64.9.9"),
        ("inside-alias.example.com", "10.66.0.3"),
    ],
)
def test_an_allowed_name_that_leads_inside_is_refused_when_it_is_dialled(
    box: Box, internet: Internet, name: str, address: str
) -> None:
    box.names("*.example.com")
    for seen in (
        box.probe("tls", "1.1.1.1", name, name),
        box.probe("tcp", "1.1.1.1", 80, _get(name)),
    ):
        assert seen.refused, seen
    assert not internet.contacts(destination=address)
    assert not internet.contacts(destination="1.1.1.1")


def test_the_public_addresses_of_a_mixed_answer_are_used(box: Box, internet: Internet) -> None:
    box.names("mixed.example.com")
    seen = box.probe("tls", "93.184.216.42", "mixed.example.com", "mixed.example.com")
    assert seen.answer["server"] == "93.184.216.42"
    assert not internet.contacts(destination="192.168.7.7")


def test_a_name_whose_answer_turns_inside_is_refused_from_then_on(
    box: Box, internet: Internet
) -> None:
    box.names("rebinding.example.com")
    arguments = ["tls", "93.184.216.43", "rebinding.example.com", "rebinding.example.com"]
    seen = [box.probe(*arguments) for _ in range(4)]
    assert seen[-1].refused
    assert not internet.contacts(destination="10.66.0.3")


@pytest.mark.parametrize("cut", ["", "segments", "records"])
@pytest.mark.parametrize("padding", [0, 15_500])
def test_a_client_hello_is_read_however_it_is_cut(box: Box, cut: str, padding: int) -> None:
    box.names("api.example.com")
    seen = box.probe("tls", ATTACKER, "api.example.com", "api.example.com", padding, cut)
    assert seen.answer["sni"] == "api.example.com" and seen.answer["server"] == API


@pytest.mark.parametrize(
    ("what", "call", "arguments"),
    [
        ("no SNI", "tls", [None, "api.example.com"]),
        ("not TLS", "tcp", [443, "SSH-2.0-client\r\n"]),
        ("HTTP on 443", "tcp", [443, _get("api.example.com")]),
        ("not HTTP", "tcp", [80, "\x16\x03\x01 not http at all\r\n\r\n"]),
        ("HTTP without Host", "tcp", [80, "GET / HTTP/1.0\r\n\r\n"]),
        ("an address for a Host", "tcp", [80, _get("93.184.216.40")]),
        (
            "two Hosts",
            "tcp",
            [80, "GET / HTTP/1.1\r\nHost: api.example.com\r\nHost: api.example.com\r\n\r\n"],
        ),
        (
            "both lengths",
            "tcp",
            [
                80,
                "POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 5\r\n"
                "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ],
        ),
    ],
)
def test_without_a_name_the_ip_rules_decide(
    box: Box, internet: Internet, what: str, call: str, arguments: list[object]
) -> None:
    box.names("api.example.com")
    assert box.probe(call, API, *arguments).refused
    assert not internet.contacts(destination=API)
    box.names("api.example.com", API)
    seen = box.probe(call, API, *arguments)
    assert internet.contacts(kind="packet", destination=API), seen
    assert not seen.refused


def test_five_seconds_to_show_a_name(box: Box, internet: Internet) -> None:
    box.names("api.example.com")
    seen = box.probes(
        "tcp",
        [API, 443, "\x16"],
        [API, 80, "GET / HT"],
        [API, 80, "GET / HTTP/1.1\r\nHost: api.example.com\r\n"],
        at_once=True,
    )
    seen += box.probes("listen_first", [API, 443], [API, 80], at_once=True)
    for one in seen:
        assert one.outcome in ("closed", "reset") and 4.5 < one.seconds < 6.5, one
    assert not internet.contacts(destination=API)


def test_without_names_nothing_waits_for_one(box: Box) -> None:
    """A server that speaks first, even on port 443, when IP rules alone decide."""
    box.policy(["140.82.121.3"], DENY_ALL)
    assert box.probe("tcp", "140.82.121.3", 443).outcome == "connected"
    assert box.probe("listen_first", "140.82.121.3", 22).seconds < 1


def test_each_request_on_a_kept_alive_connection_is_judged(box: Box, internet: Internet) -> None:
    box.names("api.example.com")
    seen = box.probe_json(
        "requests",
        API,
        80,
        _get("api.example.com", "/first"),
        _get("api.example.com", "/second"),
        _get("attacker.example.net", "/third"),
    )
    assert [one["outcome"] for one in seen[:2]] == ["answered"] * 2
    assert seen[2]["outcome"] != "answered" or " 403 " in seen[2]["data"]
    assert [c.detail["target"] for c in internet.contacts(kind="request")] == ["/first", "/second"]


@pytest.mark.parametrize("pipelined", [False, True])
def test_a_second_allowed_host_never_reaches_the_firsts_server(
    box: Box, internet: Internet, pipelined: bool
) -> None:
    box.names("api.example.com", "www.example.com")
    both = [_get("api.example.com", "/a"), _get("www.example.com", "/b")]
    box.probe_json("requests", API, 80, *(["".join(both)] if pipelined else both))
    requests = internet.contacts(kind="request")
    assert [c.destination for c in requests.where(name="api.example.com")] == [API]
    assert all(c.destination == "93.184.216.35" for c in requests.where(name="www.example.com"))


def test_a_smuggled_request_is_not_passed_on(box: Box, internet: Internet) -> None:
    """A body that looks like a request stays a body; a chunked one too."""
    box.names("api.example.com")
    inner = _get("attacker.example.net", "/inner")
    plain = f"POST /a HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: {len(inner)}\r\n\r\n"
    chunked = "POST /b HTTP/1.1\r\nHost: api.example.com\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
    seen = box.probe_json("requests", API, 80, plain + inner, chunked + chunk)
    assert [one["outcome"] for one in seen] == ["answered"] * 2
    assert [c.detail["target"] for c in internet.contacts(kind="request")] == ["/a", "/b"]


def test_large_bodies_pass_both_ways(box: Box) -> None:
    box.names("api.example.com")
    for scheme in ("http", "https"):
        url = f"{scheme}://api.example.com"
        size = box.sh(f"curl -sS -m 20 {url}/bytes/30000000 | wc -c").stdout.strip()
        assert size == "30000000"
        sent = f"head -c 30000000 /dev/zero | curl -sS -m 20 --data-binary @- {url}/upload"
        assert '"body_bytes": 30000000' in box.sh(sent).stdout
