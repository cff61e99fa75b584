"""Making and removing: what is left, what is restored, what two nodes share (nothing)."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from contextlib import closing
from ipaddress import IPv4Address

import pytest

from network import netlab
from network.netlab import (
    FAR,
    OPEN,
    RESET,
    Lab,
    is_silent,
    ping_outcome,
    read_datagram,
    run,
    tcp_outcome,
)
from sandgate.network import (
    HostNetwork,
    Links,
    NetlinkError,
    actions,
    chains,
    nftables,
    ruleset,
)
from sandgate.network.namespaces import fresh_namespace, inside
from sandgate.network.statements import show
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime import linux

EVERYTHING = EgressPolicy()
NOTHING_AT_ALL = parse_policy(None, ["0.0.0.0/0"])
SOME = parse_policy(["1.1.1.1", "8.8.8.0/24", "example.com"], ["0.0.0.0/0"])
SETTINGS = (
    "net.ipv4.ip_forward",
    "net.ipv4.icmp_ratemask",
    "net.ipv4.conf.all.accept_redirects",
    "net.ipv4.conf.all.forwarding",
    "net.ipv4.conf.lo.forwarding",
)


def state(namespace: int) -> dict[str, str]:
    """Everything that a node might leave behind."""
    commands = (
        "nft list ruleset",
        "ip rule",
        "ip route show table all",
        "ip -o addr",
        "ip -o link",
        *(f"sysctl {name}" for name in SETTINGS),
    )
    return {command: run(namespace, *command.split()) for command in commands}


def here() -> str:
    """The network namespace that this thread is in."""
    return os.readlink("/proc/thread-self/ns/net")


@pytest.mark.parametrize("forward", ["0", "1"])
@pytest.mark.parametrize("died", [False, True])
def test_teardown_leaves_what_was_there_before(forward: str, died: bool) -> None:
    with fresh_namespace() as namespace:
        pass
    try:
        run(namespace, "ip", "link", "set", "lo", "up")
        run(namespace, "sysctl", "-q", "-w", f"net.ipv4.ip_forward={forward}")
        before = state(namespace)
        with inside(namespace):
            network = HostNetwork(netlab.config())
            network.setup()
            with closing(Links(network.config.links, linux.mount_proc)) as links:
                sandbox = links.create(0)
            network.apply(0, SOME)
        assert state(namespace) != before
        if died:  # the sockets go, nothing is taken away, and the next one finds it
            network.close()
            with inside(namespace):
                network = HostNetwork(netlab.config())
                network.setup()
        with inside(namespace):
            network.teardown()
        os.close(sandbox)
        assert state(namespace) == before
        with inside(namespace):
            network.teardown()
        assert state(namespace) == before
    finally:
        os.close(namespace)


def test_setting_up_again_closes_everything_until_policies_are_applied(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    lab.listen(lab.far, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, FAR, 7) == OPEN
    with inside(lab.host):
        lab.network.setup()
    assert tcp_outcome(sandbox, FAR, 7, netlab.SILENCE) == netlab.NOTHING
    lab.network.apply(0, EVERYTHING)
    assert tcp_outcome(sandbox, FAR, 7) == OPEN


def test_connections_do_not_notice_that_the_rules_are_made_anew(lab: Lab) -> None:
    policy = parse_policy([str(FAR)], ["0.0.0.0/0"])
    client = lab.client(lab.sandbox(0, policy))
    listener = lab.listen(lab.far, "0.0.0.0", 7)
    client.settimeout(5)
    client.connect((str(FAR), 7))
    far, _ = listener.accept()
    with far, inside(lab.host):
        far.settimeout(5)
        for number in range(20):
            for sender, receiver in ((client, far), (far, client)):
                sender.sendall(b"%04d" % number)
                lab.network.setup({0: policy})
                assert receiver.recv(4, socket.MSG_WAITALL) == b"%04d" % number


def test_another_program_s_flush_does_not_open_the_node(lab: Lab) -> None:
    sandbox = lab.sandbox(0, NOTHING_AT_ALL)
    run(lab.host, "nft", "flush", "ruleset")
    assert tcp_outcome(sandbox, FAR, 7) == RESET


def test_a_kernel_that_knows_no_owned_tables_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "OWNED", 1 << 20)  # a flag that no kernel knows
    with netlab.lab() as lab:
        sandbox = lab.sandbox(0, NOTHING_AT_ALL)
        assert "owner" not in run(lab.host, "nft", "list", "ruleset")
        assert tcp_outcome(sandbox, FAR, 7) == RESET


def test_a_namespace_is_complete(lab: Lab) -> None:
    sandbox = lab.sandbox(7, EVERYTHING)
    assert "198.18.0.23/32" in run(sandbox, "ip", "-o", "addr", "show", "eth0")
    route = run(sandbox, "ip", "route")
    assert route.split()[:5] == ["default", "via", "169.254.1.1", "dev", "eth0"]
    for namespace in (sandbox, lab.host):
        assert "PERMANENT" in run(namespace, "ip", "neigh")
    assert "inet6" not in run(sandbox, "ip", "-o", "addr")
    assert "inet6" not in run(lab.host, "ip", "-o", "addr", "show", "sg7")
    lab.listen(sandbox, "127.0.0.1", 1)
    assert tcp_outcome(sandbox, "127.0.0.1", 1) == OPEN
    assert lab.network.slots() == {7}


def test_an_unprivileged_process_binds_low_ports_and_pings(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    with inside(sandbox):
        os.setegid(1000)
        os.seteuid(1000)
        try:
            with socket.socket() as server:
                server.bind(("0.0.0.0", 80))
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        finally:
            os.seteuid(0)
            os.setegid(0)
    assert ping_outcome(sandbox, FAR) == OPEN


def test_the_first_packet_of_a_new_namespace_arrives(lab: Lab) -> None:
    for slot in range(20):
        sandbox = lab.sandbox(slot, NOTHING_AT_ALL)
        started = time.perf_counter()
        assert tcp_outcome(sandbox, FAR, 7) == RESET
        assert time.perf_counter() - started < 0.8, "TCP had to send again"


def test_a_failed_creation_leaves_nothing_and_restores_the_namespace(lab: Lab) -> None:
    lab.sandbox(0, EVERYTHING)
    before, descriptors = here(), sorted(os.listdir("/proc/self/fd"))
    with inside(lab.host):
        inner = here()
        with pytest.raises(NetlinkError) as caught:
            lab.links.create(0)
        assert here() == inner
    assert caught.value.errno == errno.EEXIST
    assert "create veth sg0" in str(caught.value)
    assert here() == before
    assert sorted(os.listdir("/proc/self/fd")) == descriptors
    assert lab.network.slots() == {0}


def test_creation_works_from_any_namespace_and_returns_there(lab: Lab) -> None:
    before = here()
    namespace = lab.links.create(3)
    os.close(namespace)
    assert here() == before


def test_a_sandbox_s_own_traffic_is_not_tracked_in_its_namespace(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    udp = lab.client(sandbox, socket.SOCK_DGRAM)
    for port in range(1, 50):
        udp.sendto(b"x", (FAR, port))
        udp.sendto(b"x", ("127.0.0.1", port))
    server = lab.listen(sandbox, "127.0.0.1", 80)
    assert tcp_outcome(sandbox, "127.0.0.1", 80) == OPEN
    count = "net.netfilter.nf_conntrack_count"
    assert run(sandbox, "sysctl", "-n", count).strip() == "0"
    assert tcp_outcome(lab.host, "198.18.0.16", 80) == OPEN
    assert run(sandbox, "sysctl", "-n", count).strip() == "1"
    server.close()


@pytest.mark.parametrize("slot", [-1, 65536 - 17])
def test_a_slot_outside_the_range_is_an_error(lab: Lab, slot: int) -> None:
    for use in (lab.network.address, lab.links.create, lab.network.remove):
        with pytest.raises(ValueError, match=rf"slot {slot} is not in 0\.\.65518"):
            use(slot)
    with pytest.raises(ValueError, match="is not in"):
        lab.network.apply(slot, EVERYTHING)


def test_the_last_slot_is_not_the_broadcast_address(lab: Lab) -> None:
    assert lab.network.address(0) == IPv4Address("198.18.0.16")
    assert lab.network.address(65518) == IPv4Address("198.18.255.254")


def test_removing_takes_everything_of_the_sandbox_and_nothing_else(lab: Lab) -> None:
    lab.sandbox(1, SOME)
    with_one = run(lab.host, "nft", "list", "ruleset")
    for policy in (SOME, EVERYTHING, NOTHING_AT_ALL):
        lab.sandbox(0, SOME)
        lab.network.apply(0, policy)
        assert run(lab.host, "nft", "list", "ruleset") != with_one
        lab.end(0)
        assert run(lab.host, "nft", "list", "ruleset") == with_one
        assert "198.18.0.16 " not in run(lab.host, "ip", "route")
    assert lab.network.slots() == {1}


def test_removing_is_safe_at_every_stage(lab: Lab) -> None:
    lab.network.remove(0)
    lab.sandbox(0, None)
    lab.network.remove(0)
    lab.network.apply(0, SOME)
    lab.network.remove(0)
    lab.network.remove(0)


def test_the_next_user_of_a_slot_gets_nothing_of_the_last_one_s_flows(lab: Lab) -> None:
    far = lab.receive(lab.far, FAR, 7)

    def ask(sandbox: int) -> tuple[socket.socket, tuple[str, int]]:
        client = lab.client(sandbox, socket.SOCK_DGRAM)
        client.bind(("0.0.0.0", 5000))
        client.sendto(b"question", (FAR, 7))
        return client, read_datagram(far)[1]

    client, source = ask(lab.sandbox(0, EVERYTHING))
    client.close()
    lab.end(0)
    successor = lab.client(lab.sandbox(0, EVERYTHING), socket.SOCK_DGRAM)
    successor.bind(("0.0.0.0", 5000))
    far.sendto(b"late", source)
    assert is_silent(successor)


def test_a_removed_sandbox_is_cut_off(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    far = lab.listen(lab.far, "0.0.0.0", 7)
    lab.network.remove(0)
    assert tcp_outcome(sandbox, FAR, 7, netlab.SILENCE) == netlab.NOTHING
    assert is_silent(far)


def test_a_change_that_the_kernel_refuses_changes_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = lab.sandbox(0, SOME)
    lab.listen(lab.far, "0.0.0.0", 7)
    before = run(lab.host, "nft", "list", "ruleset")
    with monkeypatch.context() as patched:
        # The rules go to a chain that does not exist, so the middle of the batch fails.
        nowhere = actions.goto("nowhere")
        patched.setattr(actions, "accept", lambda: nowhere)
        with pytest.raises(NetlinkError, match="goto nowhere: No such file or directory"):
            lab.network.apply(0, parse_policy(["2.2.2.2"], ["0.0.0.0/0"]))
    assert run(lab.host, "nft", "list", "ruleset") == before
    assert tcp_outcome(sandbox, "1.1.1.1", 7) == OPEN
    assert tcp_outcome(sandbox, "2.2.2.2", 7) == RESET
    lab.network.apply(0, parse_policy(["2.2.2.2"], ["0.0.0.0/0"]))
    assert tcp_outcome(sandbox, "2.2.2.2", 7) == OPEN


def test_the_kernel_s_rules_read_like_ours(lab: Lab) -> None:
    rules = ruleset.sandbox_rules(lab.network.config, 0, SOME)
    lab.sandbox(0, SOME)
    listing = run(lab.host, "nft", "list", "table", "inet", "sandgate")
    for chain in (*chains.base_chains(lab.network.config), *rules.chains):
        block = re.search(rf"\tchain {chain.name} {{\n(.*?)\n\t}}", listing, re.DOTALL)
        assert block is not None, chain.name
        lines = [line.strip() for line in block[1].splitlines()]
        if chain.hook is not None:
            assert f"type {chain.hook.type} hook {chain.hook.hook}" in lines.pop(0)
        assert lines == [show(rule) for rule in chain.rules]


def test_rules_of_slots_that_nobody_knows_are_found_and_purged(lab: Lab) -> None:
    network = lab.network
    policies = (parse_policy(["10.9.0.0/16", "*.example.com"], ["0.0.0.0/0"]), EgressPolicy())
    before = network.slots_with_rules()
    for slot, policy in zip((40, 41), policies, strict=True):
        network.apply(slot, policy)
    network._applied.clear()  # as of a process that died
    assert network.slots_with_rules() - before == {40, 41}
    network.purge(40)
    assert network.slots_with_rules() - before == {41}
    network.purge(41)
    network.purge(41)
    assert network.slots_with_rules() == before
