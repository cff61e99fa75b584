"""Rules by IP address and CIDR, for TCP, UDP and ICMP, and what no rule opens."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from e2e import probe
from e2e.box import DENY_ALL, Box
from internet import ATTACKER, Internet

POLICIES: list[tuple[str, list[str], list[str], list[str], list[str]]] = [
    # what, allow, deny, reachable, refused
    ("no rule", [], [], ["1.1.1.1", "8.8.8.8", ATTACKER], []),
    ("an allow list alone denies nothing", ["1.1.1.1"], [], ["1.1.1.1", "9.9.9.9"], []),
    ("deny everything", [], DENY_ALL, [], ["1.1.1.1", "8.8.8.8", "93.184.216.34"]),
    ("deny one", [], ["8.8.8.8"], ["1.1.1.1", "8.8.8.9", "8.8.4.4"], ["8.8.8.8"]),
    ("deny a range", [], ["1.1.1.0/24"], ["1.0.0.1", "1.1.2.1"], ["1.1.1.1", "1.1.1.2"]),
    (
        "allow an address and a range",
        ["1.1.1.1", "8.8.8.0/24"],
        DENY_ALL,
        ["1.1.1.1", "8.8.8.8", "8.8.8.9", "8.8.8.255"],
        ["1.1.1.2", "1.0.0.1", "8.8.4.4", "8.8.7.255", "8.8.9.0"],
    ),
    ("the same in both lists", ["8.8.8.8"], ["8.8.8.8"], ["8.8.8.8"], []),
    ("a narrow allow in a wide deny", ["8.8.8.8"], ["8.0.0.0/8"], ["8.8.8.8"], ["8.8.4.4"]),
    ("a narrow deny in a wide allow", ["8.8.0.0/16"], ["8.8.8.8"], ["8.8.8.8", "8.8.4.4"], []),
    ("everything in both lists", DENY_ALL, DENY_ALL, ["1.1.1.1", ATTACKER], []),
    ("two halves", [], ["128.0.0.0/1", "1.0.0.0/8"], ["9.9.9.9"], ["1.1.1.1", "203.0.113.66"]),
]

ALWAYS_DENIED = [
    *("0.1.2.3", "10.0.0.1", "10.66.0.3", "10.255.255.255", "100.64.0.1", "100.64.9.9"),
    *("100.127.255.254", "169.254.169.254", "172.16.4.4", "172.31.255.254", "192.0.0.1"),
    *("192.168.7.7", "192.168.255.254", "198.18.200.9", "198.19.255.254", "240.0.0.1"),
    "255.255.255.254",
]
NEXT_TO_THEM = [
    *("1.0.0.0", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255"),
    *("128.0.0.1", "169.253.255.255", "169.255.0.1", "172.15.255.255", "172.32.0.1"),
    *("191.255.255.255", "192.0.1.1", "192.167.255.255", "192.169.0.1", "198.17.255.255"),
    *("198.20.0.1", "223.255.255.254"),
]
EVERYTHING_LISTED = [
    *("0.0.0.0/0", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.168.0.0/16", "192.0.0.0/24", "198.18.0.0/15", "224.0.0.0/4"),
    *("240.0.0.0/4", "10.66.0.3", "169.254.169.254"),
]


@pytest.mark.parametrize(
    ("allow", "deny", "reachable", "refused"),
    [row[1:] for row in POLICIES],
    ids=[row[0] for row in POLICIES],
)
def test_rules_decide_for_tcp_and_udp_and_refusals_are_prompt_and_silent(
    box: Box,
    internet: Internet,
    allow: list[str],
    deny: list[str],
    reachable: list[str],
    refused: list[str],
) -> None:
    box.policy(allow, deny)
    for call, port in (("tcp", 8080), ("tcp", 80), ("udp", 9999)):
        data = "GET / HTTP/1.0\r\n\r\n" if port == 80 else "ping"
        seen = box.probes(call, *([address, port, data] for address in reachable + refused))
        for address, one in zip(reachable + refused, seen, strict=True):
            assert one.outcome == "answered" if address in reachable else one.refused, address
    for address in reachable:
        assert len(internet.contacts(kind="packet", destination=address)) == 3
    for address in refused:
        assert not internet.contacts(destination=address)


def test_a_refused_tcp_connection_is_reset_before_it_stands(box: Box) -> None:
    box.policy([], DENY_ALL)
    assert box.probe("tcp", "1.1.1.1", 443).outcome == "refused"
    assert box.curl("https://1.1.1.1/").exit_code == 7  # failed to connect


def test_a_refused_datagram_is_answered_by_icmp(box: Box) -> None:
    box.policy([], DENY_ALL)
    assert box.probe("udp", "1.1.1.1", 443).outcome == "prohibited"


def test_ping_goes_by_address(box: Box, internet: Internet) -> None:
    box.policy(["1.1.1.1"], DENY_ALL)
    assert box.probe("ping", "1.1.1.1").outcome == "answered"
    assert box.sh("ping -c 1 -W 2 1.1.1.1").exit_code == 0
    assert box.probe("ping", "9.9.9.9").refused
    assert not internet.contacts(destination="9.9.9.9")


def test_server_first_and_half_closing_protocols_pass(box: Box) -> None:
    assert box.probe("listen_first", "140.82.121.3", 22).data.startswith("SSH-2.0-")
    seen = box.probe("half_close", "9.9.9.9", 11371, "x" * 1000)
    assert seen.data == "received 1000 bytes\n"


def test_a_port_that_nobody_serves_looks_closed(box: Box, internet: Internet) -> None:
    """No fake success: what the far side says is what the sandbox sees."""
    assert box.probe("tcp", "9.9.9.9", 4444).outcome == "refused"
    assert internet.contacts(destination="9.9.9.9", port=4444)


@pytest.mark.parametrize("allow", [[], EVERYTHING_LISTED], ids=["default", "listed"])
def test_internal_ranges_are_denied_whatever_is_listed(
    box: Box, internet: Internet, allow: list[str]
) -> None:
    box.policy(allow, [])
    for call, port in (("tcp", 8080), ("tcp", 443), ("udp", 9999)):
        seen = box.probes(call, *([address, port, "ping"] for address in ALWAYS_DENIED))
        for address, one in zip(ALWAYS_DENIED, seen, strict=True):
            assert one.refused, (call, address, one)
    for address in ALWAYS_DENIED:
        assert not internet.contacts(destination=address)


def test_internal_ranges_are_denied_where_names_are_allowed(box: Box, internet: Internet) -> None:
    """There, TCP 80 and 443 are the gateway's to judge."""
    box.policy(["*", *EVERYTHING_LISTED], DENY_ALL)
    request = "GET / HTTP/1.1\r\nHost: 10.66.0.3\r\n\r\n"
    for port in (80, 443):
        seen = box.probes("tcp", *([address, port, request] for address in ALWAYS_DENIED))
        for address, one in zip(ALWAYS_DENIED, seen, strict=True):
            assert one.refused, (port, address, one)
    for address in ALWAYS_DENIED:
        assert not internet.contacts(destination=address)


def test_multicast_and_broadcast_go_nowhere(box: Box, internet: Internet) -> None:
    box.policy(EVERYTHING_LISTED, [])
    for address in ("224.0.0.1", "239.255.255.250", "255.255.255.255"):
        assert box.probe("udp", address, 9999, "ping", 0.3).outcome != "answered"
    assert not [c for c in internet.contacts() if c.destination.startswith(("2", "255."))]


def test_addresses_next_to_the_internal_ranges_are_reachable(box: Box) -> None:
    seen = box.probes("tcp", *([address, 8080, "ping"] for address in NEXT_TO_THEM))
    unreachable = [
        (address, one)
        for address, one in zip(NEXT_TO_THEM, seen, strict=True)
        if one.outcome != "answered"
    ]
    assert not unreachable


@pytest.fixture
def machine_port() -> Iterator[socket.socket]:
    """A TCP server on all addresses of the machine the node runs on."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.setblocking(False)
        yield server


@pytest.mark.parametrize("policy", [[], EVERYTHING_LISTED, ["*"]], ids=["default", "listed", "*"])
def test_the_machines_own_addresses_are_out_of_reach(
    box: Box, internet: Internet, machine_port: socket.socket, policy: list[str]
) -> None:
    box.policy(policy, DENY_ALL if policy else [])
    uplink = internet.uplink_address(internet.attached[0])
    addresses = [uplink, "198.18.0.1", "198.18.0.2", "169.254.1.1"]
    ports = [machine_port.getsockname()[1], 22, 53, 80, 443, 8443, 15001]
    request = "GET / HTTP/1.1\r\nHost: 198.18.0.1\r\n\r\n"
    cases: list[list[object]] = [
        [address, port, request]
        for address in addresses
        for port in ports
        if (address, port) != ("198.18.0.1", 443)  # sandbox URLs; see test_ingress_inside
    ]
    for case, one in zip(cases, box.probes("tcp", *cases), strict=True):
        assert one.refused, (case, one)
    for address in addresses:
        assert box.probe("udp", address, 9999).refused
    with pytest.raises(BlockingIOError):
        machine_port.accept()


def test_other_sandboxes_are_out_of_reach(box: Box, other_box: Box) -> None:
    with other_box.serving(8000):
        for allow in ([], [other_box.address, "198.18.0.0/15"]):
            box.policy(allow, [])
            for port in (8000, 49983, 80, 443):
                assert box.probe("tcp", other_box.address, port, "x").refused, port
            assert box.probe("udp", other_box.address, 9999).refused
            assert box.probe("ping", other_box.address).refused


@pytest.mark.parametrize("port", [80, 443, 8080])
def test_ipv6_leads_nowhere(box: Box, internet: Internet, port: int) -> None:
    box.policy(["*"], DENY_ALL)
    address = "2001:4860:4860::8888"
    seen = box.probe("ipv6", address, port)
    assert seen.outcome in ("refused", "prohibited", "forbidden") and seen.seconds < 1
    assert not internet.contacts(destination=address)


@pytest.mark.parametrize("call", ["spoof", "spoof_frame"])
def test_only_the_sandboxs_own_source_address_passes(
    box: Box, other_box: Box, internet: Internet, call: str
) -> None:
    """Root inside may not even try; the machine's root in its network gets no further."""
    uplink = internet.uplink_address(internet.attached[0])
    sources = (other_box.address, uplink, "8.8.4.4", "127.0.0.1", "10.66.0.3")
    for source in sources:
        assert box.probe(call, source, "9.9.9.9", 4545, user="root").outcome == "forbidden"
    with box.network_namespace():
        for source in sources:
            assert getattr(probe, call)(source, "9.9.9.9", 4545)["outcome"] == "connected"
        assert not internet.contacts(port=4545)
        getattr(probe, call)(box.address, "9.9.9.9", 4545)
    assert internet.contacts(port=4545), "or the packets sent above prove nothing"


def test_a_refusal_is_at_once_the_hundredth_time_too(box: Box, internet: Internet) -> None:
    box.policy([], DENY_ALL)
    for call, outcome in (("tcp", "refused"), ("udp", "prohibited")):
        slowest = box.probe("repeat", 100, call, "1.1.1.1", 8080, "ping")
        assert (slowest.data, slowest.refused) == (outcome, True)
    box.names("api.example.com")
    slowest = box.probe("repeat", 100, "tcp", "1.1.1.1", 443, "not TLS at all\r\n")
    assert slowest.refused, slowest
    assert not internet.contacts(destination="1.1.1.1")
