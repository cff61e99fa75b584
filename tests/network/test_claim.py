"""Whose a namespace and its addresses are: nodes side by side, dead ones, other programs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing

import pytest

from network import netlab
from network.netlab import (
    FAR,
    OPEN,
    RESET,
    Lab,
    run,
    tcp_outcome,
)
from sandgate.cli.doctor.trial import trial
from sandgate.network import (
    HostNetwork,
    NamespaceInUseError,
    NetlinkError,
    nftables,
    occupied,
    require_unclaimed,
    ruleset,
)
from sandgate.network.namespaces import fresh_namespace, inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.policy import EgressPolicy, parse_policy

EVERYTHING = EgressPolicy()
NOTHING_AT_ALL = parse_policy(None, ["0.0.0.0/0"])


def test_a_second_node_in_the_same_namespace_is_refused(lab: Lab) -> None:
    with inside(lab.host):
        second = HostNetwork(netlab.config())
        try:
            # Of this very process, so that only the kernel tells them apart.
            with pytest.raises(NamespaceInUseError, match="ip netns exec NAME sandgate up"):
                second.setup()
            with pytest.raises(NamespaceInUseError, match="another node runs"):
                second.teardown()
        finally:
            second.close()
    sandbox = lab.sandbox(0, EVERYTHING)
    lab.listen(lab.far, "0.0.0.0", 7)
    assert tcp_outcome(sandbox, FAR, 7) == OPEN


def attempt(lab: Lab, action: Callable[[], None]) -> str | None:
    """What came of it in another process, in the lab's namespace."""
    with inside(lab.host):
        return trial(action)


@pytest.mark.parametrize("owned", [True, False])
def test_another_process_is_told_whose_the_namespace_is(
    monkeypatch: pytest.MonkeyPatch, owned: bool
) -> None:
    if not owned:
        monkeypatch.setattr(nftables, "OWNED", 1 << 20)  # as before Linux 6.9
    with netlab.lab() as lab:
        sandbox = lab.sandbox(0, EVERYTHING)
        lab.listen(lab.far, "0.0.0.0", 7)
        before = run(lab.host, "nft", "list", "ruleset")
        for action in (
            require_unclaimed,
            HostNetwork(netlab.config()).setup,
            HostNetwork(netlab.config()).teardown,
        ):
            said = attempt(lab, action) or ""
            assert "another node runs in this network namespace" in said
            assert f"launcher has pid {os.getpid()})" in said
        assert run(lab.host, "nft", "list", "ruleset") == before
        assert tcp_outcome(sandbox, FAR, 7) == OPEN


def test_a_table_whose_node_has_died_is_nobody_s() -> None:
    with fresh_namespace() as namespace:
        pass
    try:
        with inside(namespace):
            assert trial(lambda: HostNetwork(netlab.config()).setup()) is None
            with pytest.raises(AssertionError, match="File exists"):
                run(namespace, "nft", "create", "table", "inet", "sandgate")
            require_unclaimed()
            network = HostNetwork(netlab.config())
            network.setup()
            network.teardown()
    finally:
        os.close(namespace)


def test_what_a_dead_node_s_child_inherited_is_waited_for() -> None:
    """A launcher that is killed while it forks leaves a child with its sockets, for a moment."""
    with fresh_namespace() as namespace:
        pass
    try:
        with inside(namespace):
            read, write = os.pipe()
            node = os.fork()
            if node == 0:
                network = HostNetwork(netlab.config())
                network.setup()
                if os.fork() == 0:
                    os.write(write, b"x")
                    time.sleep(0.3)
                os._exit(0)
            try:
                assert os.read(read, 1) == b"x"
                assert os.waitpid(node, 0)[1] == 0
                network = HostNetwork(netlab.config())
                network.setup()
                network.teardown()
            finally:
                os.close(read)
                os.close(write)
    finally:
        os.close(namespace)


def test_a_table_of_another_program_is_not_taken_for_a_node() -> None:
    with fresh_namespace() as namespace:
        pass
    try:
        with inside(namespace), closing(NetlinkSocket(nftables.NETLINK_NETFILTER)) as other:
            table = nftables.Table(ruleset.TABLE)
            nftables.commit(other, [table.create(flags=nftables.OWNED)])
            network = HostNetwork(netlab.config())
            with pytest.raises(NetlinkError, match="table sandgate: Operation not permitted"):
                network.setup()
            network.close()
    finally:
        os.close(namespace)


def test_what_others_use_of_the_range_is_found_in_all_tables() -> None:
    own = (netlab.config().ingress_address, netlab.config().gateway_address)
    wanted = netlab.config().sandboxes

    def found(namespace: int) -> list[str]:
        with inside(namespace):
            return occupied(wanted, own)

    with netlab.lab() as lab:
        lab.sandbox(3, EVERYTHING)
        assert found(lab.host) == []  # a node's own links, routes and addresses
        for command in (
            "ip link add tun0 type veth peer name tun1",
            "ip link set tun0 up",
            "ip link set tun1 up",
            "ip route add 198.18.0.0/15 dev tun0 table 52",
            "ip route add 128.0.0.0/1 dev tun0",  # half of a VPN's default route
            "ip route add 10.0.0.0/8 dev tun0",
            "ip route add unreachable 198.18.4.0/24",
            "ip addr add 198.18.9.9/32 dev lo",
        ):
            run(lab.host, *command.split())
        assert found(lab.host) == [
            "198.18.0.0/15 by tun0",
            "198.18.9.9/32 by lo",
        ]


def test_two_nodes_side_by_side_do_not_touch_each_other() -> None:
    with netlab.lab() as one, netlab.lab() as two:
        first, second = one.sandbox(0, EVERYTHING), two.sandbox(0, NOTHING_AT_ALL)
        for lab in (one, two):
            lab.listen(lab.far, "0.0.0.0", 7)
        assert tcp_outcome(first, FAR, 7) == OPEN
        assert tcp_outcome(second, FAR, 7) == RESET
        two.network.apply(0, EVERYTHING)
        one.network.remove(0)
        assert tcp_outcome(second, FAR, 7) == OPEN
        with inside(one.host):
            one.network.teardown()
        assert tcp_outcome(second, FAR, 7) == OPEN
