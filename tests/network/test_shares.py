"""Many hostile sandboxes at once: they share what there is, and the rest of the node goes on."""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from network import netlab
from network.netlab import GATEWAY_UID, OPEN, RESET, Lab, tcp_outcome
from network.test_limits import (
    EVERYTHING,
    PORT,
    eventually,
    opens,
    refusals,
    seconds_left,
    tracked,
)
from sandgate.network import listing, nftables, ruleset
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.refusals import TOLD
from sandgate.network.shares import Share, share_out
from sandgate.reasons import Reason

TABLE, SANDBOXES, MOST = 480, 20, 64
SHARES = (Share(4), Share(12, 6), Share(48, 1))
"""What the two tests of the kernel are about: 4, 16 and 64 connections."""


def test_what_is_shared_out_is_half_of_the_table_at_most() -> None:
    assert share_out(TABLE, SANDBOXES, MOST) == SHARES
    assert share_out(262_144, 1000, 2048) == (Share(43), Share(253, 172), Share(1752, 24))
    for table in (1, 1000, 65_536, 262_144, 1 << 32):
        for sandboxes in (1, 17, 1000, 4096):
            for most in (16, 2048, 65_536):
                shares = share_out(table, sandboxes, most)
                assert all(share.connections >= 1 for share in shares)
                assert all(share.places != 0 for share in shares)
                assert sum(share.connections for share in shares) <= max(most, 3)
                total = sum(share.connections * (share.places or sandboxes) for share in shares)
                # A table that is too small for one connection each is shared as if it were not.
                assert total <= table // 2 or table // 6 < sandboxes


@pytest.mark.parametrize(("table", "sandboxes"), [(262_144, 64), (4096, 1), (1 << 32, 4096)])
def test_where_there_is_enough_for_all_nothing_is_shared_out(table: int, sandboxes: int) -> None:
    assert share_out(table, sandboxes, 2048) == (Share(2048),)


@pytest.fixture
def crowd() -> Iterator[Lab]:
    """A node whose table, as it believes, is small."""
    limits = replace(netlab.PLENTY, connections=MOST)
    with netlab.lab(limits=limits, max_sandboxes=SANDBOXES, tracked=TABLE) as made:
        made.listen(made.far, "0.0.0.0", PORT)
        yield made


def test_hostile_sandboxes_leave_the_others_their_share(crowd: Lab) -> None:
    before = tracked(crowd)
    hostile = [crowd.sandbox(slot, EVERYTHING) for slot in range(SANDBOXES - 1)]
    got = [Counter(opens(crowd, sandbox, MOST + 6)) for sandbox in hostile]
    # One has all it may have, five the middle share (the first one has that, too), the others
    # what everybody has; refused is refused at once.
    assert [met[OPEN] for met in got] == [64, *[16] * 5, *[4] * 13]
    assert all(set(met) == {OPEN, RESET} for met in got)
    assert tracked(crowd) - before <= sum(met[OPEN] for met in got) <= TABLE // 2
    assert refusals(crowd, "limit_connections")
    assert refusals(crowd, "limit_node_connections")
    # The neighbour has what is everybody's, and visitors come in everywhere.
    neighbour = crowd.sandbox(SANDBOXES, EVERYTHING)
    assert set(opens(crowd, neighbour, 4)) == {OPEN}
    for slot, namespace in ((0, hostile[0]), (SANDBOXES, neighbour)):
        crowd.listen(namespace, "0.0.0.0", 3000)
        assert tcp_outcome(crowd.host, crowd.network.address(slot), 3000) == OPEN


def test_who_closes_connections_gives_the_place_back(crowd: Lab) -> None:
    first, second = crowd.sandbox(0, EVERYTHING), crowd.sandbox(1, EVERYTHING)
    assert Counter(opens(crowd, first, MOST)) == {OPEN: MOST}
    of_first = list(crowd.clients)
    assert Counter(opens(crowd, second, MOST)) == {OPEN: 16, RESET: 48}
    for client in of_first:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    # The kernel looks once a second whose connections have all ended.
    eventually(lambda: tcp_outcome(second, "9.9.9.9", PORT) == OPEN)
    assert Counter(opens(crowd, second, MOST))[OPEN] >= 46
    assert Counter(opens(crowd, crowd.sandbox(2, EVERYTHING), MOST))[OPEN] == 16


def test_a_sandbox_at_its_own_limit_is_told_so_and_not_that_the_node_is_full(crowd: Lab) -> None:
    opens(crowd, crowd.sandbox(0, EVERYTHING), MOST + 3)
    opens(crowd, crowd.sandbox(1, EVERYTHING), MOST)
    with inside(crowd.host), NetlinkSocket(nftables.NETLINK_NETFILTER) as netfilter:
        told = {
            reason: set(listing.read_meter(netfilter, ruleset.TABLE, TOLD[reason].name))
            for reason in (Reason.LIMIT_CONNECTIONS, Reason.LIMIT_NODE_CONNECTIONS)
        }
    assert told == {Reason.LIMIT_CONNECTIONS: {"sg0"}, Reason.LIMIT_NODE_CONNECTIONS: {"sg1"}}


def test_what_others_than_sandboxes_close_leaves_the_table_within_seconds(lab: Lab) -> None:
    """Two minutes by the kernel's default: at 2,000 visits a second it would be full."""
    inside_it = lab.sandbox(0, EVERYTHING)
    visitor, local = lab.client(lab.far), lab.client(lab.host)
    proxy, gateway = lab.client(lab.host), _socket_of(lab.host, GATEWAY_UID)
    gate = lab.listen(lab.host, "0.0.0.0", netlab.HTTPS_PORT)
    server = lab.listen(inside_it, "0.0.0.0", 3000)
    outside = lab.listen(lab.far, "9.9.9.9", PORT)
    with gateway:
        for client, listener, place in (
            (visitor, gate, (netlab.UPLINK, netlab.HTTPS_PORT)),
            (local, gate, ("127.0.0.1", netlab.HTTPS_PORT)),
            (proxy, server, (str(lab.network.address(0)), 3000)),
            (gateway, outside, ("9.9.9.9", PORT)),
        ):
            client.connect(place)
            listener.accept()[0].close()
            assert client.recv(1) == b""
    for client in (visitor, local, proxy):
        client.close()
    eventually(lambda: tracked(lab, "TIME_WAIT") == 4)
    assert all(left <= 5 for left in seconds_left(lab, "TIME_WAIT"))


def _socket_of(namespace: int, uid: int) -> socket.socket:
    with inside(namespace):
        os.seteuid(uid)  # a socket belongs to whoever makes it
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            os.seteuid(0)
