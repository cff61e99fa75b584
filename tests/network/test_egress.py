"""What leaves a sandbox, by packets that do or do not arrive."""

from __future__ import annotations

import socket
import struct
import time
from ipaddress import IPv4Network

import pytest

from network import netlab
from network.netlab import (
    FAR,
    NOTHING,
    OPEN,
    PROHIBITED,
    RESET,
    SILENCE,
    UPLINK,
    Lab,
    is_silent,
    ping_outcome,
    read_datagram,
    run,
    tcp_outcome,
    udp_outcome,
)
from sandgate.guard import ALWAYS_DENIED
from sandgate.network import HOST_ADDRESS
from sandgate.network.namespaces import inside
from sandgate.policy import EgressPolicy, parse_policy

EVERYTHING = EgressPolicy()
NOTHING_AT_ALL = parse_policy(None, ["0.0.0.0/0"])


def test_nothing_passes_before_a_policy_is_applied(lab: Lab) -> None:
    sandbox = lab.sandbox(0, None)
    tcp, udp = lab.listen(lab.far, "0.0.0.0", 7), lab.receive(lab.far, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, "1.2.3.4", 7, SILENCE) == NOTHING
    assert udp_outcome(sandbox, "1.2.3.4", 7, SILENCE) == NOTHING
    assert ping_outcome(sandbox, "1.2.3.4", SILENCE) == NOTHING
    assert is_silent(tcp, udp)


def test_an_open_policy_lets_tcp_udp_and_icmp_out_under_the_host_s_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    tcp, udp = lab.listen(lab.far, "0.0.0.0", 7), lab.receive(lab.far, "0.0.0.0", 7)
    client = lab.client(sandbox)
    client.connect(("1.2.3.4", 7))
    connection, (source, _) = tcp.accept()
    with connection:
        assert source == UPLINK
        assert connection.getsockname() == ("1.2.3.4", 7)
        connection.send(b"answer")
        assert client.recv(100) == b"answer"
    sender = lab.client(sandbox, socket.SOCK_DGRAM)
    sender.sendto(b"question", ("1.2.3.4", 7))
    data, (source, _), destination = read_datagram(udp)
    assert (data, source, destination) == (b"question", UPLINK, ("1.2.3.4", 7))
    assert ping_outcome(sandbox, "1.2.3.4") == OPEN


def test_ports_of_the_web_go_by_address_where_no_name_is_allowed(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    gateway = lab.listen(lab.host, netlab.GATEWAY, netlab.GATEWAY_PORT, transparent=True)
    far = lab.listen(lab.far, "0.0.0.0", 443)
    assert tcp_outcome(sandbox, "1.2.3.4", 443) == OPEN
    assert not is_silent(far)
    assert is_silent(gateway)


@pytest.mark.parametrize(
    "address",
    [
        str(network.network_address + 77)
        for network in ALWAYS_DENIED
        if not network.is_loopback and not network.is_multicast
    ]
    + ["172.31.255.255", "100.127.255.255", "198.19.255.1", "169.254.169.254"],
)
def test_no_list_opens_what_is_always_denied(lab: Lab, address: str) -> None:
    policy = parse_policy([address, "0.0.0.0/0"], None) if address[:2] != "0." else EVERYTHING
    sandbox = lab.sandbox(0, policy)
    tcp, udp = lab.listen(lab.far, "0.0.0.0", 7), lab.receive(lab.far, "0.0.0.0", 7)
    if address.startswith("0."):  # the sandbox's own kernel refuses to send there
        assert tcp_outcome(sandbox, address, 7) != OPEN
    else:
        assert tcp_outcome(sandbox, address, 7) == RESET
        assert udp_outcome(sandbox, address, 7) == PROHIBITED
        assert ping_outcome(sandbox, address) == PROHIBITED
    assert is_silent(tcp, udp)


def test_neighbours_of_always_denied_ranges_are_reached(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    lab.listen(lab.far, "0.0.0.0", 7)
    for address in ("9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "198.20.0.0"):
        assert tcp_outcome(sandbox, address, 7) == OPEN, address


def test_what_the_operator_opens_is_reached_and_still_goes_by_the_policy() -> None:
    with netlab.lab(("10.0.0.0/8", "240.0.0.0/4")) as lab:
        sandbox = lab.sandbox(0, EVERYTHING)
        lab.listen(lab.far, "0.0.0.0", 7)
        assert tcp_outcome(sandbox, "10.1.2.3", 7) == OPEN
        assert tcp_outcome(sandbox, "255.255.255.254", 7) == OPEN
        lab.network.apply(0, parse_policy(None, ["10.0.0.0/8", "255.255.255.254/31"]))
        assert tcp_outcome(sandbox, "10.1.2.3", 7) == RESET
        assert tcp_outcome(sandbox, "255.255.255.254", 7) == RESET
        assert tcp_outcome(sandbox, "255.255.255.253", 7) == OPEN
        lab.network.apply(0, parse_policy(["255.255.255.254/31"], ["0.0.0.0/0"]))
        assert tcp_outcome(sandbox, "255.255.255.254", 7) == OPEN
        assert tcp_outcome(sandbox, "255.255.255.253", 7) == RESET


@pytest.mark.parametrize("address", [UPLINK, str(HOST_ADDRESS), "198.18.0.1", "198.18.0.2"])
def test_the_host_s_own_addresses_are_refused(lab: Lab, address: str) -> None:
    sandbox = lab.sandbox(0, parse_policy(["0.0.0.0/0"], None))
    tcp, udp = lab.listen(lab.host, "0.0.0.0", 22), lab.receive(lab.host, "0.0.0.0", 22)
    assert tcp_outcome(sandbox, address, 22) == RESET
    assert udp_outcome(sandbox, address, 22) == PROHIBITED
    assert ping_outcome(sandbox, address) == PROHIBITED
    assert is_silent(tcp, udp)


def test_the_gateway_s_own_listeners_are_not_reached_by_their_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, parse_policy(["*"], ["0.0.0.0/0"]))
    tcp = lab.listen(lab.host, netlab.GATEWAY, netlab.GATEWAY_PORT, transparent=True)
    udp = lab.receive(lab.host, netlab.GATEWAY, 53, transparent=True)
    assert tcp_outcome(sandbox, netlab.GATEWAY, netlab.GATEWAY_PORT) == RESET
    assert udp_outcome(sandbox, netlab.GATEWAY, 53) == PROHIBITED
    assert is_silent(tcp, udp)


def test_an_address_that_the_host_gets_later_is_refused_too(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    lab.listen(lab.far, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, "5.5.5.5", 7) == OPEN
    run(lab.host, "ip", "addr", "add", "5.5.5.5/32", "dev", "up0")
    host = lab.listen(lab.host, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, "5.5.5.5", 7) == RESET
    assert is_silent(host)


@pytest.mark.parametrize("address", ["255.255.255.255", "203.0.113.255", "224.0.0.1", "239.1.1.1"])
def test_broadcast_and_multicast_do_not_leave(lab: Lab, address: str) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    far, host = lab.receive(lab.far, "0.0.0.0", 7), lab.receive(lab.host, "0.0.0.0", 7)
    assert udp_outcome(sandbox, address, 7, SILENCE) in (PROHIBITED, NOTHING)
    assert is_silent(far, host)


@pytest.mark.parametrize("address", ["224.0.0.251", "239.255.255.250"])
def test_multicast_is_refused_at_once(lab: Lab, address: str) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    assert udp_outcome(sandbox, address, 5353) == PROHIBITED


def test_sandboxes_do_not_reach_each_other(lab: Lab) -> None:
    one, two = (lab.sandbox(slot, parse_policy(["0.0.0.0/0"], None)) for slot in (0, 1))
    tcp, udp = lab.listen(two, "0.0.0.0", 7), lab.receive(two, "0.0.0.0", 7)
    assert tcp_outcome(one, lab.network.address(1), 7) == RESET
    assert udp_outcome(one, lab.network.address(1), 7) == PROHIBITED
    assert ping_outcome(one, lab.network.address(1)) == PROHIBITED
    assert is_silent(tcp, udp)


@pytest.mark.parametrize(
    ("allow", "deny", "reached", "refused"),
    [
        (["1.1.1.1", "8.8.8.0/24"], ["0.0.0.0/0"], "1.1.1.1 8.8.8.255", "1.1.1.2 8.8.9.0 9.9.9.9"),
        ([], ["8.8.8.8"], "8.8.8.7 8.8.8.9 1.1.1.1", "8.8.8.8"),
        (["1.1.1.1"], ["1.1.1.1"], "1.1.1.1 2.2.2.2", ""),
        (["1.0.0.0/8"], ["1.1.1.1"], "1.1.1.1 2.2.2.2", ""),
        (["1.1.1.1"], ["1.0.0.0/8"], "1.1.1.1 2.2.2.2", "1.1.1.2 1.0.0.0 1.255.255.255"),
        (["0.0.0.0/0"], ["0.0.0.0/0"], "1.1.1.1 223.255.255.255", ""),
        ([], ["0.0.0.0/0"], "", "1.1.1.1 223.255.255.255"),
        (["1.1.1.1"], [], "1.1.1.1 2.2.2.2", ""),
        (
            ["1.0.0.0/9", "1.64.0.0/10", "1.128.0.0/9", "2.0.0.0/7"],
            ["0.0.0.0/0"],
            "1.0.0.0 1.255.255.255 2.0.0.0 3.255.255.255",
            "4.0.0.0 223.255.255.255",
        ),
        ([], ["128.0.0.0/1", "255.255.255.255"], "126.0.0.1", "128.0.0.0 223.255.255.255"),
    ],
)
def test_allow_beats_deny_and_the_rest_passes(
    lab: Lab, allow: list[str], deny: list[str], reached: str, refused: str
) -> None:
    sandbox = lab.sandbox(0, parse_policy(allow, deny))
    lab.listen(lab.far, "0.0.0.0", 7)
    for address in reached.split():
        assert tcp_outcome(sandbox, address, 7) == OPEN, address
        assert ping_outcome(sandbox, address) == OPEN, address
    for address in refused.split():
        assert tcp_outcome(sandbox, address, 7) == RESET, address
        assert udp_outcome(sandbox, address, 7) == PROHIBITED, address
        assert ping_outcome(sandbox, address) == PROHIBITED, address


@pytest.mark.parametrize("count", [1000, 9000])
def test_thousands_of_entries_work(lab: Lab, count: int) -> None:
    networks = [f"20.{index // 250}.{index % 250}.0/25" for index in range(count)]
    sandbox = lab.sandbox(0, EVERYTHING)
    started = time.perf_counter()
    lab.network.apply(0, parse_policy(networks, ["0.0.0.0/0"]))
    assert time.perf_counter() - started < 1
    lab.listen(lab.far, "0.0.0.0", 7)
    for network in (networks[0], networks[count // 2], networks[-1]):
        last = IPv4Network(network).broadcast_address
        assert tcp_outcome(sandbox, last, 7) == OPEN
        assert tcp_outcome(sandbox, last + 1, 7) == RESET


def test_the_hundredth_refusal_is_seen_like_the_first(lab: Lab) -> None:
    sandbox = lab.sandbox(0, NOTHING_AT_ALL)
    started = time.perf_counter()
    for _ in range(100):
        assert udp_outcome(sandbox, "1.1.1.1", 7) == PROHIBITED
        assert ping_outcome(sandbox, "1.1.1.1") == PROHIBITED
        assert tcp_outcome(sandbox, "1.1.1.1", 7) == RESET
    assert time.perf_counter() - started < 3


def test_without_the_changed_setting_refusals_would_be_rate_limited(lab: Lab) -> None:
    sandbox = lab.sandbox(0, NOTHING_AT_ALL)
    run(lab.host, "sysctl", "-q", "-w", "net.ipv4.icmp_ratemask=6168")
    outcomes = {udp_outcome(sandbox, "1.1.1.1", 7, 0.02) for _ in range(20)}
    assert NOTHING in outcomes


@pytest.mark.parametrize("source", ["198.18.0.17", "203.0.113.2", "8.8.8.8", "169.254.1.1"])
def test_a_packet_with_another_source_is_dropped(lab: Lab, source: str) -> None:
    one, two = lab.sandbox(0, EVERYTHING), lab.sandbox(1, EVERYTHING)
    far, host = lab.receive(lab.far, "0.0.0.0", 7), lab.receive(lab.host, "0.0.0.0", 7)
    other = lab.receive(two, "0.0.0.0", 7)
    raw = lab.stack.enter_context(netlab.make_socket(one, socket.SOCK_RAW, socket.IPPROTO_RAW))
    for destination in ("1.2.3.4", FAR, UPLINK, "198.18.0.17"):
        raw.sendto(_udp_packet(source, destination, 7), (destination, 0))
    assert is_silent(far, host, other)
    raw.sendto(_udp_packet("198.18.0.16", "1.2.3.4", 7), ("1.2.3.4", 0))
    assert not is_silent(far), "the packet itself is good"


def test_ipv6_is_dropped_even_if_the_sandbox_had_it(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    for namespace, name, address in ((sandbox, "eth0", "fd00::2"), (lab.host, "sg0", "fd00::1")):
        run(namespace, "sysctl", "-q", "-w", f"net.ipv6.conf.{name}.disable_ipv6=0")
        run(namespace, "ip", "addr", "add", f"{address}/64", "dev", name, "nodad")
    run(sandbox, "ip", "neigh", "add", "fd00::1", "lladdr", "02:53:47:00:00:00", "dev", "eth0")
    run(lab.host, "ip", "neigh", "add", "fd00::2", "lladdr", "02:53:c6:12:00:10", "dev", "sg0")
    with inside(lab.host):
        receiver = lab.stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    receiver.bind(("::", 7))
    with inside(sandbox):
        sender = lab.stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    sender.sendto(b"six", ("fd00::1", 7))
    assert is_silent(receiver)
    lab.network.close()  # gives up the table, so that another may delete it
    run(lab.host, "nft", "delete", "table", "inet", "sandgate")
    sender.sendto(b"six", ("fd00::1", 7))
    assert not is_silent(receiver), "the packet itself is good"


def test_ip_options_are_refused(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    tcp = lab.listen(lab.far, "0.0.0.0", 7)
    loose_source_route = bytes((0x83, 7, 4)) + socket.inet_aton("1.2.3.4") + b"\x01"
    for options in (b"\x01\x01\x01\x01", loose_source_route):
        client = lab.client(sandbox)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
        with pytest.raises(ConnectionRefusedError):
            client.connect(("1.2.3.4", 7))
    assert is_silent(tcp)


def test_fragments_are_judged_as_the_datagram_they_are(lab: Lab) -> None:
    sandbox = lab.sandbox(0, parse_policy(["1.1.1.1"], ["0.0.0.0/0"]))
    udp = lab.receive(lab.far, "0.0.0.0", 7)
    client = lab.client(sandbox, socket.SOCK_DGRAM)
    client.sendto(bytes(9000), ("1.1.1.1", 7))
    data, _, _ = read_datagram(udp)
    assert len(data) == 9000
    client.connect(("1.1.1.2", 7))
    client.send(bytes(9000))
    with pytest.raises(OSError, match="No route to host"):
        client.recv(10)
    assert is_silent(udp)


def test_other_protocols_go_by_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, parse_policy(["1.1.1.1"], ["0.0.0.0/0"]))
    gre = 47
    far = lab.stack.enter_context(netlab.make_socket(lab.far, socket.SOCK_RAW, gre))
    raw = lab.stack.enter_context(netlab.make_socket(sandbox, socket.SOCK_RAW, gre))
    raw.sendto(struct.pack(">HH", 0, 0x6558) + bytes(20), ("1.1.1.2", 0))
    assert is_silent(far)
    raw.sendto(struct.pack(">HH", 0, 0x6558) + bytes(20), ("1.1.1.1", 0))
    assert not is_silent(far)


def _udp_packet(source: str, destination: str, port: int) -> bytes:
    """IPv4 and UDP headers and a payload; the kernel fills in the length and checksum of IP."""
    payload = b"forged"
    ip = struct.pack(
        ">BBHHHBBH4s4s",
        0x45,
        0,
        28 + len(payload),
        1,
        0,
        64,
        socket.IPPROTO_UDP,
        0,
        socket.inet_aton(source),
        socket.inet_aton(destination),
    )
    return ip + struct.pack(">HHHH", 4000, port, 8 + len(payload), 0) + payload


@pytest.mark.parametrize("inner", ["10.0.0.5", "198.18.0.17"])
def test_another_table_that_changes_the_destination_opens_nothing(lab: Lab, inner: str) -> None:
    one, two = lab.sandbox(0, EVERYTHING), lab.sandbox(1, EVERYTHING)
    silent = lab.listen(lab.far, "0.0.0.0", 7), lab.listen(two, "0.0.0.0", 7)
    rules = f"""table ip foreign {{
    chain nat {{
        type nat hook prerouting priority -100;
        ip daddr 1.2.3.4 dnat to {inner}
        ip daddr 1.2.3.5 dnat to 9.9.9.9
    }}
}}"""
    run(lab.host, "nft", "-f", "-", stdin=rules)
    assert tcp_outcome(one, "1.2.3.4", 7, SILENCE) == NOTHING
    assert is_silent(*silent)
    assert tcp_outcome(one, "1.2.3.5", 7) == OPEN
