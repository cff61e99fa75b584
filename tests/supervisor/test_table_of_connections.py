"""The kernel's table of connections, really filled: creates are refused, what runs goes on."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from internet import namespaces
from sandgate.limits import TrafficLimits
from sandgate.network import conntrack
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER
from sandgate.network.shares import share_out
from sandgate.settings import Settings
from supervisor.home import Home
from supervisor.test_exhaustion import client

pytestmark = pytest.mark.timeout(240)

_OUTSIDE, _TO_OUTSIDE = "203.0.113.1", "203.0.113.2"
_NOBODY = "192.0.2.77"
_NETFILTER = Path("/proc/sys/net/netfilter")


@pytest.fixture
def outside(home: Home) -> Iterator[None]:
    """A server that sandboxes reach, at port 8080 of _OUTSIDE."""
    far = f"sgfar{os.getpid()}"
    namespaces.create(far)
    try:
        namespaces.run(
            *("ip", "-n", home.namespace, "link", "add", "far0", "type", "veth"),
            *("peer", "name", "far1", "netns", far),
        )
        for namespace, link, address in (
            (home.namespace, "far0", _TO_OUTSIDE),
            (far, "far1", _OUTSIDE),
        ):
            namespaces.run("ip", "-n", namespace, "addr", "add", f"{address}/30", "dev", link)
            namespaces.run("ip", "-n", namespace, "link", "set", link, "up")
        with namespaces.inside(far):
            listener = socket.create_server((_OUTSIDE, 8080))
        thread = threading.Thread(target=_answer, args=(listener,))
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            listener.close()
    finally:
        namespaces.delete(far)


def _answer(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nthere")


class Table:
    """The table of connections of the node's namespace."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._next = 0
        # Packets to a neighbour that does not exist are tracked, sent, and heard by nobody.
        entry = ("neigh", "replace", _NOBODY, "lladdr", "02:00:00:00:00:77", "dev", "up0")
        namespaces.run("ip", "-n", namespace, *entry, "nud", "permanent")
        namespaces.set_sysctls(namespace, netfilter__nf_conntrack_udp_timeout=300)

    def fill(self, leave: int) -> int:
        """Have entries made until no more than so many are free. Returns how many are."""
        with namespaces.inside(self._namespace), contextlib.ExitStack() as stack:
            most = int((_NETFILTER / "nf_conntrack_max").read_text())
            before = -1
            while most - (count := int((_NETFILTER / "nf_conntrack_count").read_text())) > leave:
                assert count > before, "the table does not fill"
                before = count
                sender = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
                self._next += 1
                for port in range(1, min(65_536, most - count - leave + 1)):
                    sender.sendto(b"", (_NOBODY, port))
            return most - count

    def empty(self) -> None:
        """Have the kernel forget what :meth:`fill` made."""
        with namespaces.inside(self._namespace), NetlinkSocket(NETLINK_NETFILTER) as netfilter:
            conntrack.forget(netfilter, 0)


def test_a_full_table_of_connections_refuses_creates_and_ends_no_connection(
    home: Home, outside: None
) -> None:
    assert home.sandgate("up").returncode == 0, home.log()
    table = Table(home.namespace)
    there = f"run curl -sS -m 20 http://{_OUTSIDE}:8080/"
    with client(home) as user:
        assert "made" in user.ask("create")
        user.ask("serve 3000")
        assert 0 < table.fill(leave=900) <= 900
        user.refused(429, "entries are free in the machine's table of connections", "conntrack_max")
        assert user.ask(there) == {"said": "there"}
        assert user.ask("get 3000") == {"status": 200}

        # Full to the last entry: the kernel makes room from those that nobody answered.
        table.fill(leave=0)
        user.refused(429, "entries are free in the machine's table of connections")
        for _ in range(3):
            assert user.ask(there) == {"said": "there"}
            assert user.ask("get 3000") == {"status": 200}

        table.empty()
        user.ask("run sleep 0.5")
        assert "made" in user.ask("create")
        user.goes_on()


# Opens as many connections as it gets, and says what one more meets.
_GRAB = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for port in range(1, 2301):
    sock.sendto(b"x", ("{_OUTSIDE}", 1024 + port))
try:
    socket.create_connection(("{_OUTSIDE}", 8080), timeout=20)
except OSError as error:
    print(type(error).__name__)
"""
_BOTH = ["limit_connections", "limit_node_connections"]


def _open_by_source(namespace: str) -> Counter[str]:
    """How many UDP flows of each sandbox the kernel tracks."""
    listing = namespaces.run("ip", "netns", "exec", namespace, "cat", "/proc/net/nf_conntrack")
    found = Counter[str]()
    for line in listing.splitlines():
        words = line.split()
        if words[2] == "udp":
            found[next(word for word in words if word.startswith("src="))] += 1
    return found


def test_many_hostile_sandboxes_leave_the_others_their_share_and_visitors_the_rest(
    home: Home, outside: None
) -> None:
    with home.config.open("a") as config:
        config.write("max_new_connections = 2000\n")
    assert home.sandgate("up").returncode == 0, home.log()
    table = int((_NETFILTER / "nf_conntrack_max").read_text())
    settings, most = Settings(data_dir=home.data), TrafficLimits().connections
    shares = share_out(table, settings.max_sandboxes, most)
    assert len(shares) == 3, "the machine's table is large enough for all there may be"
    everyone, some, all_of_it = shares
    assert all_of_it.places is not None and all_of_it.places < 50
    grab = base64.b64encode(_GRAB.encode()).decode()
    there = f"run curl -sS -m 20 http://{_OUTSIDE}:8080/"
    with client(home) as user:
        for _ in range(all_of_it.places + 2):
            assert "made" in user.ask("create")
        answer = user.ask(f"everywhere echo {grab} | base64 -d | python3 -")
        assert set(answer["all said"]) == {"ConnectionRefusedError\n"}, answer
        held = sorted(_open_by_source(home.namespace).values())
        middle = everyone.connections + some.connections
        assert held[-1] <= most
        # A DNS query or so of the node may be among them.
        assert sum(count > middle for count in held) == all_of_it.places, held
        assert sum(count == middle for count in held) == 2, held
        assert sum(held) < table // 2
        # One more, who comes last, and visitors of one that took all it could have.
        with client(home) as other:
            assert "made" in other.ask("create")
            assert other.ask(there) == {"said": "there"}
        user.ask("serve 3000")
        assert user.ask("get 3000") == {"status": 200}
        user.goes_on()
        for _ in range(20):  # what was decided is told a moment later
            if (told := user.ask("denied")["denied"]) == _BOTH:
                break
            user.ask("run sleep 0.5")
        assert told == _BOTH
