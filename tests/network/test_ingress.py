"""What comes into a sandbox, and what does not; and open connections when the policy changes."""

from __future__ import annotations

import socket

import pytest

from network import netlab
from network.netlab import (
    FAR,
    HTTPS_PORT,
    INGRESS,
    NOTHING,
    OPEN,
    PROHIBITED,
    RESET,
    SILENCE,
    UPLINK,
    Lab,
    is_silent,
    read_datagram,
    tcp_outcome,
    udp_outcome,
)
from sandgate.network import HOST_ADDRESS
from sandgate.policy import EgressPolicy, parse_policy

EVERYTHING = EgressPolicy()
NOTHING_AT_ALL = parse_policy(None, ["0.0.0.0/0"])
BY_NAME = parse_policy(["example.com"], ["0.0.0.0/0"])
ADDRESS = "198.18.0.16"


@pytest.mark.parametrize("policy", [EVERYTHING, NOTHING_AT_ALL, BY_NAME])
@pytest.mark.parametrize("bound", ["0.0.0.0", ADDRESS, "127.0.0.1"])
@pytest.mark.parametrize("port", [3000, 443])
def test_the_host_reaches_a_server_wherever_it_is_bound(
    lab: Lab, policy: EgressPolicy, bound: str, port: int
) -> None:
    sandbox = lab.sandbox(0, policy)
    server = lab.listen(sandbox, bound, port)
    for _ in range(2):
        client = lab.client(lab.host)
        client.connect((ADDRESS, port))
        connection, (source, _) = server.accept()
        with connection:
            assert source == str(HOST_ADDRESS)
            client.send(b"question")
            assert connection.recv(100) == b"question"
            connection.send(bytes(100_000))
        received = 0
        while data := client.recv(65536):
            received += len(data)
        assert received == 100_000


def test_a_closed_port_of_the_sandbox_resets(lab: Lab) -> None:
    lab.sandbox(0, EVERYTHING)
    assert tcp_outcome(lab.host, ADDRESS, 3000) == RESET


def test_the_server_at_the_sandbox_s_address_is_preferred_to_the_one_at_the_loopback(
    lab: Lab,
) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    loopback, outer = lab.listen(sandbox, "127.0.0.1", 3000), lab.listen(sandbox, ADDRESS, 3000)
    assert tcp_outcome(lab.host, ADDRESS, 3000) == OPEN
    assert is_silent(loopback)
    assert not is_silent(outer)


def test_no_connection_enters_before_a_policy_is_applied(lab: Lab) -> None:
    sandbox = lab.sandbox(0, None)
    lab.listen(sandbox, "0.0.0.0", 3000)
    assert tcp_outcome(lab.host, ADDRESS, 3000, SILENCE) == NOTHING


@pytest.mark.parametrize("bound", ["0.0.0.0", "127.0.0.1"])
def test_nobody_outside_reaches_a_sandbox(lab: Lab, bound: str) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    tcp, udp = lab.listen(sandbox, bound, 3000), lab.receive(sandbox, bound, 3000)
    assert tcp_outcome(lab.far, ADDRESS, 3000, SILENCE) == NOTHING
    assert udp_outcome(lab.far, ADDRESS, 3000, SILENCE) == NOTHING
    assert is_silent(tcp, udp)


@pytest.mark.parametrize("address", ["198.18.0.1", "198.18.0.2", "169.254.1.1"])
def test_nobody_outside_reaches_the_node_s_inner_addresses(lab: Lab, address: str) -> None:
    ports = (HTTPS_PORT, 53, netlab.GATEWAY_PORT)
    listeners = [lab.listen(lab.host, "0.0.0.0", port) for port in ports]
    netlab.run(lab.far, "ip", "route", "add", address, "via", UPLINK)
    for port in ports:
        assert tcp_outcome(lab.far, address, port, SILENCE) == NOTHING
        assert tcp_outcome(lab.host, address, port) == OPEN
        assert tcp_outcome(lab.far, UPLINK, port) == OPEN
    for listener in listeners:
        sources = set()
        while not is_silent(listener):
            connection, (source, _) = listener.accept()
            connection.close()
            sources.add(source)
        assert sources == {address, FAR}


def test_a_datagram_s_answer_comes_back_and_nothing_else(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    far, other = lab.receive(lab.far, "0.0.0.0", 7), lab.client(lab.far, socket.SOCK_DGRAM)
    client = lab.client(sandbox, socket.SOCK_DGRAM)
    client.sendto(b"question", (FAR, 7))
    _, source, _ = read_datagram(far)
    other.sendto(b"not asked for", source)
    assert is_silent(client)
    far.sendto(b"answer", source)
    assert client.recvfrom(100) == (b"answer", (FAR, 7))


class TestTightening:
    """A new policy holds for connections that are open."""

    @pytest.mark.parametrize(
        "tighter", [NOTHING_AT_ALL, parse_policy(None, [FAR]), BY_NAME], ids=["all", "one", "names"]
    )
    def test_an_open_udp_flow_stops_in_both_directions(
        self, lab: Lab, tighter: EgressPolicy
    ) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        far, client = lab.receive(lab.far, FAR, 7), lab.client(sandbox, socket.SOCK_DGRAM)
        client.connect((FAR, 7))
        client.send(b"question")
        _, source, _ = read_datagram(far)
        far.sendto(b"answer", source)
        assert client.recv(100) == b"answer"
        lab.network.apply(0, tighter)
        far.sendto(b"late", source)
        assert is_silent(client)
        client.send(b"more")
        with pytest.raises(OSError, match="No route to host"):
            client.recv(100)
        assert is_silent(far)

    def test_an_open_tcp_connection_is_reset(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        far, client = lab.listen(lab.far, "0.0.0.0", 7), lab.client(sandbox)
        client.connect((FAR, 7))
        connection, _ = far.accept()
        with connection:
            lab.network.apply(0, NOTHING_AT_ALL)
            client.send(b"more")
            with pytest.raises(ConnectionResetError):
                client.recv(100)
            assert is_silent(connection)

    def test_a_far_side_that_goes_on_sending_is_reset(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        far, client = lab.listen(lab.far, "0.0.0.0", 7), lab.client(sandbox)
        client.connect((FAR, 7))
        connection, _ = far.accept()
        with connection:
            lab.network.apply(0, NOTHING_AT_ALL)
            connection.send(b"late")
            with pytest.raises(ConnectionResetError):
                connection.recv(100)
            assert is_silent(client)

    def test_what_both_policies_allow_goes_on(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        far, client = lab.listen(lab.far, "0.0.0.0", 7), lab.client(sandbox)
        client.connect((FAR, 7))
        connection, _ = far.accept()
        with connection:
            for policy in (parse_policy([FAR], ["0.0.0.0/0"]), parse_policy(None, ["1.1.1.1"])):
                lab.network.apply(0, policy)
                client.send(b"more")
                assert connection.recv(100) == b"more"
                connection.send(b"back")
                assert client.recv(100) == b"back"

    def test_a_loosened_policy_holds_at_once(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, NOTHING_AT_ALL)
        lab.listen(lab.far, "0.0.0.0", 7)
        assert tcp_outcome(sandbox, FAR, 7) == RESET
        lab.network.apply(0, EVERYTHING)
        assert tcp_outcome(sandbox, FAR, 7) == OPEN

    def test_one_sandbox_s_policy_is_not_another_s(self, lab: Lab) -> None:
        closed, opened = lab.sandbox(0, EVERYTHING), lab.sandbox(1, EVERYTHING)
        lab.listen(lab.far, "0.0.0.0", 7)
        lab.network.apply(0, NOTHING_AT_ALL)
        assert tcp_outcome(closed, FAR, 7) == RESET
        assert tcp_outcome(opened, FAR, 7) == OPEN
        assert udp_outcome(closed, FAR, 7) == PROHIBITED

    def test_errors_from_routers_on_the_way_arrive_where_their_flow_is_allowed(
        self, lab: Lab
    ) -> None:
        sandbox = lab.sandbox(0, parse_policy(["1.1.1.1"], ["0.0.0.0/0"]))
        # The far side answers from its own address, which the policy does not list.
        netlab.run(lab.far, "ip", "route", "add", "prohibit", "1.1.1.1", "table", "main")
        netlab.run(lab.far, "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        assert udp_outcome(sandbox, "1.1.1.1", 7) == PROHIBITED

    def test_the_ingress_goes_on_when_everything_is_denied(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        server, client = lab.listen(sandbox, "127.0.0.1", 3000), lab.client(lab.host)
        client.connect((ADDRESS, 3000))
        connection, _ = server.accept()
        with connection:
            lab.network.apply(0, NOTHING_AT_ALL)
            connection.send(b"answer")
            assert client.recv(100) == b"answer"

    def test_the_ingress_address_closes_for_an_open_connection(self, lab: Lab) -> None:
        sandbox = lab.sandbox(0, EVERYTHING)
        ingress, client = lab.listen(lab.host, INGRESS, HTTPS_PORT), lab.client(sandbox)
        client.connect((str(INGRESS), HTTPS_PORT))
        connection, _ = ingress.accept()
        with connection:
            lab.network.apply(0, NOTHING_AT_ALL)
            client.send(b"more")
            with pytest.raises(ConnectionResetError):
                client.recv(100)
            assert is_silent(connection)
