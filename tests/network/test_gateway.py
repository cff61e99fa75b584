"""What is handed to the gateway, and what happens without one."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import replace

import pytest

from network import netlab
from network.netlab import (
    FAR,
    GATEWAY,
    GATEWAY_PORT,
    GATEWAY_UID,
    HTTPS_PORT,
    INGRESS,
    OPEN,
    PROHIBITED,
    RESET,
    UPLINK,
    UPSTREAM_DNS,
    Lab,
    is_silent,
    read_datagram,
    run,
    tcp_outcome,
    udp_outcome,
)
from sandgate.network.namespaces import inside
from sandgate.policy import EgressPolicy, Mode, parse_policy

IP_PKTINFO = 8
EVERYTHING = EgressPolicy()
NOTHING_AT_ALL = parse_policy(None, ["0.0.0.0/0"])
BY_NAME = parse_policy(["example.com", "1.1.1.1"], ["0.0.0.0/0"])


def gateway_tcp(lab: Lab) -> socket.socket:
    return lab.listen(lab.host, GATEWAY, GATEWAY_PORT, transparent=True)


@pytest.mark.parametrize("address", ["9.9.9.9", "1.1.1.1"])
@pytest.mark.parametrize("port", [80, 443])
def test_with_names_the_web_s_ports_go_to_the_gateway_whatever_the_address(
    lab: Lab, address: str, port: int
) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    gateway, far = gateway_tcp(lab), lab.listen(lab.far, "0.0.0.0", port)
    client = lab.client(sandbox)
    client.connect((address, port))
    connection, (source, _) = gateway.accept()
    with connection:
        assert connection.getsockname() == (address, port)
        assert source == "198.18.0.16"
        connection.send(b"answer")
        assert client.recv(100) == b"answer"
        client.send(b"question")
        assert connection.recv(100) == b"question"
    assert client.recv(100) == b""
    assert is_silent(far)


BY_PORT = parse_policy(["example.com:22", "example.com:443", "1.1.1.1"], ["0.0.0.0/0"])


@pytest.mark.parametrize("address", ["9.9.9.9", "1.1.1.1"])
@pytest.mark.parametrize("port", [22, 443])
def test_ports_that_names_are_allowed_on_go_to_the_gateway_and_stay_with_it(
    lab: Lab, address: str, port: int
) -> None:
    sandbox, other = lab.sandbox(0, BY_PORT), lab.sandbox(1, BY_NAME)
    gateway, far = gateway_tcp(lab), lab.listen(lab.far, "0.0.0.0", port)
    client = lab.client(sandbox)
    client.connect((address, port))
    connection, _ = gateway.accept()
    with connection:
        assert connection.getsockname() == (address, port)
        for policy in (NOTHING_AT_ALL, EVERYTHING):
            lab.network.apply(0, policy)
            connection.send(b"answer")
            assert client.recv(100) == b"answer"
            client.send(b"question")
            assert connection.recv(100) == b"question"
    assert is_silent(far)
    if port == 22:
        assert tcp_outcome(other, "9.9.9.9", port) == RESET
        assert is_silent(gateway)


def test_ports_without_names_go_by_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, BY_PORT)
    gateway = gateway_tcp(lab)
    far = [lab.listen(lab.far, "0.0.0.0", port) for port in (80, 23)]
    ssh_over_udp = lab.receive(lab.far, "0.0.0.0", 22)
    for port in (80, 23):
        assert tcp_outcome(sandbox, "9.9.9.9", port) == RESET
    assert udp_outcome(sandbox, "9.9.9.9", 22) == PROHIBITED
    assert is_silent(gateway, ssh_over_udp, *far)
    for port in (80, 23):
        assert tcp_outcome(sandbox, "1.1.1.1", port) == OPEN
    assert is_silent(gateway)


@pytest.mark.parametrize("address", ["10.0.0.1", UPLINK, "198.18.0.17", "169.254.169.254"])
def test_the_always_denied_does_not_come_to_the_gateway_on_other_ports_either(
    lab: Lab, address: str
) -> None:
    sandbox = lab.sandbox(0, BY_PORT)
    gateway = gateway_tcp(lab)
    assert tcp_outcome(sandbox, address, 22) == RESET
    assert is_silent(gateway)


def test_reporting_lets_all_pass_but_the_always_denied_and_shows_the_web_to_the_gateway(
    lab: Lab,
) -> None:
    sandbox = lab.sandbox(0, replace(BY_PORT, mode=Mode.REPORT))
    gateway = gateway_tcp(lab)
    lab.listen(lab.far, "0.0.0.0", 23)
    assert tcp_outcome(sandbox, "9.9.9.9", 23) == OPEN
    assert is_silent(gateway)
    for port in (22, 80, 443):
        assert tcp_outcome(sandbox, "9.9.9.9", port) == OPEN
        gateway.accept()[0].close()
    for address in ("10.0.0.1", UPLINK, "198.18.0.17"):
        assert tcp_outcome(sandbox, address, 23) == RESET
    quic = lab.receive(lab.far, "0.0.0.0", 443)
    lab.client(sandbox, socket.SOCK_DGRAM).sendto(b"quic", ("9.9.9.9", 443))
    assert not is_silent(quic)


LISTED = parse_policy(["example.com"], ["0.0.0.0/0"], dns_servers=["9.9.9.9", "10.0.0.53"])


def test_listed_resolvers_are_the_gateway_too_and_8_8_8_8_is_none_then(lab: Lab) -> None:
    sandbox = lab.sandbox(0, LISTED)
    udp = lab.receive(lab.host, GATEWAY, 53, transparent=True)
    tcp = lab.listen(lab.host, GATEWAY, 53, transparent=True)
    far = [lab.receive(lab.far, "0.0.0.0", 53), lab.listen(lab.far, "0.0.0.0", 53)]
    client = lab.client(sandbox, socket.SOCK_DGRAM)
    client.connect(("9.9.9.9", 53))
    client.send(b"question")
    data, source, destination = read_datagram(udp)
    assert (data, destination) == (b"question", ("9.9.9.9", 53))
    # Answers come from the address that was asked, by the very socket that listens.
    packed = struct.pack("=4x4s4x", socket.inet_aton("9.9.9.9"))
    udp.sendmsg([b"answer"], [(socket.SOL_IP, IP_PKTINFO, packed)], 0, source)
    assert client.recv(100) == b"answer"
    assert tcp_outcome(sandbox, "9.9.9.9", 53) == OPEN
    assert not is_silent(tcp)
    tcp.accept()[0].close()
    for address in ("8.8.8.8", "10.0.0.53", "1.1.1.1"):
        assert udp_outcome(sandbox, address, 53) == PROHIBITED
        assert tcp_outcome(sandbox, address, 53) == RESET
    assert udp_outcome(sandbox, "9.9.9.9", 54) == PROHIBITED
    assert is_silent(udp, tcp, *far)


def test_a_listed_resolver_that_is_allowed_as_an_address_is_one(lab: Lab) -> None:
    policy = parse_policy(["example.com", "9.9.9.9"], ["0.0.0.0/0"], dns_servers=["9.9.9.9"])
    sandbox = lab.sandbox(0, policy)
    gateway = lab.receive(lab.host, GATEWAY, 53, transparent=True)
    far = lab.receive(lab.far, "0.0.0.0", 53)
    lab.client(sandbox, socket.SOCK_DGRAM).sendto(b"question", ("9.9.9.9", 53))
    assert read_datagram(far)[2] == ("9.9.9.9", 53)
    assert is_silent(gateway)


def test_with_names_all_else_goes_by_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    gateway = gateway_tcp(lab)
    lab.listen(lab.far, "0.0.0.0", 8080)
    quic = lab.receive(lab.far, "0.0.0.0", 443)
    assert tcp_outcome(sandbox, "1.1.1.1", 8080) == OPEN
    assert tcp_outcome(sandbox, "9.9.9.9", 8080) == RESET
    assert udp_outcome(sandbox, "9.9.9.9", 443) == PROHIBITED
    assert is_silent(gateway, quic)
    lab.client(sandbox, socket.SOCK_DGRAM).sendto(b"quic", ("1.1.1.1", 443))
    assert not is_silent(quic)


@pytest.mark.parametrize("address", ["10.0.0.1", UPLINK, "198.18.0.17", "169.254.169.254"])
def test_with_names_the_always_denied_does_not_come_to_the_gateway(lab: Lab, address: str) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    gateway = gateway_tcp(lab)
    assert tcp_outcome(sandbox, address, 443) == RESET
    assert is_silent(gateway)


@pytest.mark.parametrize("transparent", [None, False])
def test_without_a_gateway_connections_by_name_are_reset(
    lab: Lab, transparent: bool | None
) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    listeners = [lab.listen(lab.far, "0.0.0.0", 443), lab.listen(lab.host, "0.0.0.0", 443)]
    if transparent is not None:
        listeners.append(lab.listen(lab.host, GATEWAY, GATEWAY_PORT, transparent=transparent))
    assert tcp_outcome(sandbox, "1.1.1.1", 443) == RESET
    assert is_silent(*listeners)


@pytest.mark.parametrize("policy", [EVERYTHING, BY_NAME, parse_policy(["8.8.8.8"], ["0.0.0.0/0"])])
def test_the_resolver_is_the_gateway(lab: Lab, policy: EgressPolicy) -> None:
    sandbox = lab.sandbox(0, policy)
    udp = lab.receive(lab.host, GATEWAY, 53, transparent=True)
    tcp = lab.listen(lab.host, GATEWAY, 53, transparent=True)
    far = [lab.receive(lab.far, "0.0.0.0", 53), lab.listen(lab.far, "0.0.0.0", 53)]
    client = lab.client(sandbox, socket.SOCK_DGRAM)
    client.connect(("8.8.8.8", 53))
    client.send(b"question")
    data, source, destination = read_datagram(udp)
    assert (data, source[0], destination) == (b"question", "198.18.0.16", ("8.8.8.8", 53))
    answer = lab.client(lab.host, socket.SOCK_DGRAM)
    answer.setsockopt(socket.SOL_IP, netlab.IP_TRANSPARENT, 1)
    answer.bind(("8.8.8.8", 53))
    answer.sendto(b"answer", source)
    assert client.recv(100) == b"answer"
    assert tcp_outcome(sandbox, "8.8.8.8", 53) == OPEN
    connection, _ = tcp.accept()
    with connection:
        assert connection.getsockname() == ("8.8.8.8", 53)
    assert is_silent(*far)


@pytest.mark.parametrize(
    ("policy", "listens"),
    [
        (NOTHING_AT_ALL, True),
        (parse_policy(["1.1.1.1"], ["0.0.0.0/0"]), True),
        (parse_policy(None, ["8.8.8.8"]), True),
        (EVERYTHING, False),
        (BY_NAME, False),
    ],
)
def test_the_resolver_is_refused_without_policy_or_gateway_and_never_forwarded(
    lab: Lab, policy: EgressPolicy, listens: bool
) -> None:
    sandbox = lab.sandbox(0, policy)
    silent = [lab.receive(lab.far, "0.0.0.0", 53), lab.listen(lab.far, "0.0.0.0", 53)]
    if listens:
        silent.append(lab.receive(lab.host, GATEWAY, 53, transparent=True))
        silent.append(lab.listen(lab.host, GATEWAY, 53, transparent=True))
    assert udp_outcome(sandbox, "8.8.8.8", 53) == PROHIBITED
    assert tcp_outcome(sandbox, "8.8.8.8", 53) == RESET
    assert is_silent(*silent)


def test_other_resolvers_go_by_address(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    gateway = lab.receive(lab.host, GATEWAY, 53, transparent=True)
    far = lab.receive(lab.far, "0.0.0.0", 53)
    lab.client(sandbox, socket.SOCK_DGRAM).sendto(b"question", ("1.1.1.1", 53))
    assert read_datagram(far)[2] == ("1.1.1.1", 53)
    assert is_silent(gateway)


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (EVERYTHING, OPEN),
        (NOTHING_AT_ALL, RESET),
        (parse_policy(["198.18.0.1"], ["0.0.0.0/0"]), OPEN),
        (parse_policy(None, ["198.18.0.1"]), RESET),
        (parse_policy(None, ["1.1.1.1"]), OPEN),
    ],
)
def test_the_ingress_address_goes_by_the_policy(
    lab: Lab, policy: EgressPolicy, outcome: str
) -> None:
    sandbox = lab.sandbox(0, policy)
    ingress = lab.listen(lab.host, INGRESS, HTTPS_PORT)
    assert tcp_outcome(sandbox, INGRESS, HTTPS_PORT) == outcome
    assert is_silent(ingress) == (outcome == RESET)


def test_with_names_the_ingress_address_goes_to_the_gateway(lab: Lab) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    ingress = lab.listen(lab.host, INGRESS, HTTPS_PORT)
    assert tcp_outcome(sandbox, INGRESS, HTTPS_PORT) == RESET
    gateway = gateway_tcp(lab)
    assert tcp_outcome(sandbox, INGRESS, HTTPS_PORT) == OPEN
    connection, _ = gateway.accept()
    with connection:
        assert connection.getsockname() == (str(INGRESS), HTTPS_PORT)
    assert is_silent(ingress)


@pytest.mark.parametrize("policy", [EVERYTHING, BY_NAME, parse_policy(["0.0.0.0/0"], None)])
def test_other_ports_of_the_ingress_address_are_refused(lab: Lab, policy: EgressPolicy) -> None:
    sandbox = lab.sandbox(0, policy)
    gateway = gateway_tcp(lab)
    others = [lab.listen(lab.host, "0.0.0.0", port) for port in (22, 80, 443)]
    quic = lab.receive(lab.host, INGRESS, HTTPS_PORT)
    for port in (22, 80, 443):
        assert tcp_outcome(sandbox, INGRESS, port) == RESET
    assert udp_outcome(sandbox, INGRESS, HTTPS_PORT) == PROHIBITED
    assert is_silent(gateway, quic, *others)


@pytest.mark.parametrize("destination", [("9.9.9.9", 443), ("9.9.9.9", 80), (str(INGRESS), 8443)])
def test_a_connection_of_the_gateway_stays_with_it_when_names_go(
    lab: Lab, destination: tuple[str, int]
) -> None:
    sandbox = lab.sandbox(0, BY_NAME)
    gateway = gateway_tcp(lab)
    client = lab.client(sandbox)
    client.connect(destination)
    connection, _ = gateway.accept()
    with connection:
        for policy in (NOTHING_AT_ALL, EVERYTHING):
            lab.network.apply(0, policy)
            client.send(b"more")
            assert connection.recv(100) == b"more"


def test_a_listener_that_is_transparent_at_the_same_port_gets_nothing(lab: Lab) -> None:
    sandbox = lab.sandbox(0, NOTHING_AT_ALL)
    foreign = lab.listen(lab.host, "0.0.0.0", 443, transparent=True)
    assert tcp_outcome(sandbox, "1.1.1.1", 443) == RESET
    assert is_silent(foreign)


def test_a_direct_connection_goes_by_its_address_when_names_come(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    far, gateway = lab.listen(lab.far, "0.0.0.0", 443), gateway_tcp(lab)
    allowed, denied = lab.client(sandbox), lab.client(sandbox)
    allowed.connect(("1.1.1.1", 443))
    kept, _ = far.accept()
    denied.connect(("9.9.9.9", 443))
    ended, _ = far.accept()
    with kept, ended:
        lab.network.apply(0, BY_NAME)
        allowed.send(b"more")
        assert kept.recv(100) == b"more"
        kept.send(b"answer")
        assert allowed.recv(100) == b"answer"
        denied.send(b"more")
        with pytest.raises(ConnectionResetError):
            denied.recv(100)
        assert is_silent(ended)
    assert is_silent(gateway)


@pytest.mark.parametrize("name", ["rp_filter", "src_valid_mark", "route_localnet"])
@pytest.mark.parametrize("value", [1, 2])
def test_the_host_s_source_checks_do_not_matter(lab: Lab, name: str, value: int) -> None:
    run(lab.host, "sysctl", "-q", "-w", f"net.ipv4.conf.all.{name}={value if 'rp' in name else 1}")
    if name == "src_valid_mark":
        run(lab.host, "sysctl", "-q", "-w", f"net.ipv4.conf.all.rp_filter={value}")
    sandbox = lab.sandbox(0, BY_NAME)
    gateway_tcp(lab)
    lab.listen(lab.far, "0.0.0.0", 7)
    lab.listen(sandbox, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, "9.9.9.9", 443) == OPEN
    assert tcp_outcome(sandbox, "1.1.1.1", 7) == OPEN
    assert tcp_outcome(lab.host, "198.18.0.16", 7) == OPEN


class TestSecondBarrier:
    """The gateway's process is held to the always-denied ranges in the kernel, too."""

    def outcome(self, lab: Lab, address: object, port: int, uid: int = GATEWAY_UID) -> str:
        with inside(lab.host):
            os.seteuid(uid)  # a socket belongs to whoever makes it
            try:
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            finally:
                os.seteuid(0)
        with client:
            client.settimeout(netlab.PATIENCE)
            return netlab.connect_outcome(client, (str(address), port))

    def test_it_reaches_the_internet_only(self, lab: Lab) -> None:
        far, host = lab.listen(lab.far, "0.0.0.0", 7), lab.listen(lab.host, "0.0.0.0", 7)
        for address in ("10.1.1.1", "169.254.169.254", "127.0.0.1", "127.0.0.53", UPLINK, INGRESS):
            assert self.outcome(lab, address, 7) == RESET, address
        assert is_silent(far, host)
        assert self.outcome(lab, "1.1.1.1", 7) == OPEN
        assert self.outcome(lab, FAR, 7) == OPEN
        assert not is_silent(far)

    def test_others_are_not_held(self, lab: Lab) -> None:
        lab.listen(lab.far, "0.0.0.0", 7)
        assert self.outcome(lab, "10.1.1.1", 7, uid=0) == OPEN
        assert self.outcome(lab, "10.1.1.1", 7, uid=GATEWAY_UID - 1) == OPEN

    def test_its_resolvers_and_the_ingress_are_open(self, lab: Lab) -> None:
        lab.listen(lab.far, "0.0.0.0", 53)
        lab.listen(lab.host, "127.0.0.53", 53)
        lab.listen(lab.host, INGRESS, HTTPS_PORT)
        assert self.outcome(lab, UPSTREAM_DNS, 53) == OPEN
        assert self.outcome(lab, UPSTREAM_DNS, 80) == RESET
        assert self.outcome(lab, "127.0.0.53", 53) == OPEN
        assert self.outcome(lab, "10.0.0.1", 53) == RESET
        assert self.outcome(lab, INGRESS, HTTPS_PORT) == OPEN
