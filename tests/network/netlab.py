"""A node's network and an outside, each in a network namespace made for one test.

`far` answers at every address there is: a route hands it all packets. The node's namespace reaches
it by `up0`. Sockets are made inside a namespace and keep working from anywhere.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from sandgate.guard import AddressGuard
from sandgate.limits import TrafficLimits
from sandgate.network import HostNetwork, Links, NetworkConfig
from sandgate.network import rtnetlink as rt
from sandgate.network.namespaces import fresh_namespace, inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.policy import EgressPolicy
from sandgate.runtime import linux

SANDBOXES = IPv4Network("198.18.0.0/16")
INGRESS, GATEWAY = IPv4Address("198.18.0.1"), IPv4Address("198.18.0.2")
HTTPS_PORT, GATEWAY_PORT = 8443, 15001
UPSTREAM_DNS = IPv4Address("10.99.0.53")
UPLINK, FAR = "203.0.113.2", "203.0.113.1"
GATEWAY_UID = 65534

IP_TRANSPARENT, IP_RECVORIGDSTADDR = 19, 20
PATIENCE = 5.0
"""Seconds to wait for what must come."""
SILENCE = 0.15
"""Seconds to wait for what must not come."""

PLENTY = TrafficLimits(connections=65_536, new_connections=100_000, dns_queries=100_000)
"""Limits that no test reaches by accident."""

OPEN, RESET, PROHIBITED, NOTHING = "open", "reset", "prohibited", "nothing"


def config(
    internal_allow: tuple[str, ...] = (),
    limits: TrafficLimits | None = None,
    *,
    max_sandboxes: int = 1,
    tracked: int = 262_144,
) -> NetworkConfig:
    """The configuration of the tests' node."""
    openings = tuple(IPv4Network(network) for network in internal_allow)
    return NetworkConfig(
        sandboxes=SANDBOXES,
        ingress_address=INGRESS,
        https_port=HTTPS_PORT,
        gateway_address=GATEWAY,
        gateway_port=GATEWAY_PORT,
        closed=AddressGuard(SANDBOXES, openings).closed,
        gateway_uid=GATEWAY_UID,
        upstream_dns=(UPSTREAM_DNS,),
        limits=limits or PLENTY,
        max_sandboxes=max_sandboxes,
        tracked=tracked,
    )


def run(namespace: int, *command: str, stdin: str = "") -> str:
    """Run a command in a namespace; its output."""
    with inside(namespace):
        done = subprocess.run(command, input=stdin, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def make_socket(namespace: int, kind: int, protocol: int = 0) -> socket.socket:
    """An IPv4 socket in a namespace."""
    with inside(namespace):
        made = socket.socket(socket.AF_INET, kind, protocol)
    made.settimeout(PATIENCE)
    return made


def tcp_outcome(namespace: int, address: object, port: int, patience: float = PATIENCE) -> str:
    """What a TCP connection from the namespace meets."""
    with make_socket(namespace, socket.SOCK_STREAM) as client:
        client.settimeout(patience)
        return connect_outcome(client, (str(address), port))


def udp_outcome(namespace: int, address: object, port: int, patience: float = PATIENCE) -> str:
    """What a datagram from the namespace meets: OPEN is an answer."""
    with make_socket(namespace, socket.SOCK_DGRAM) as client:
        client.settimeout(patience)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        try:
            client.connect((str(address), port))
            client.send(b"question")
            client.recv(100)
        except OSError as error:
            return _word(error)
        return OPEN


def ping_outcome(namespace: int, address: object, patience: float = PATIENCE) -> str:
    """What an ICMP echo request from the namespace meets."""
    with make_socket(namespace, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as client:
        client.settimeout(patience)
        client.setsockopt(socket.SOL_IP, 11, 1)  # IP_RECVERR: report ICMP errors on the socket
        try:
            client.connect((str(address), 0))
            client.send(struct.pack(">BBHHH", 8, 0, 0, 0, 1) + b"ping")
            client.recv(100)
        except OSError as error:
            return _word(error)
        return OPEN


def connect_outcome(client: socket.socket, address: tuple[str, int]) -> str:
    """What connecting the socket meets."""
    try:
        client.connect(address)
    except OSError as error:
        return _word(error)
    return OPEN


def _word(error: OSError) -> str:
    if isinstance(error, TimeoutError):
        return NOTHING
    # "Administratively prohibited" is EHOSTUNREACH, another ICMP code would be something else.
    words = {errno.ECONNREFUSED: RESET, errno.EHOSTUNREACH: PROHIBITED}
    return words.get(error.errno or 0, str(error))


@dataclass
class Lab:
    """The node's namespace, the far one, and the network under test."""

    host: int
    far: int
    network: HostNetwork
    links: Links
    stack: ExitStack
    sandboxes: dict[int, int] = field(default_factory=dict)
    clients: list[socket.socket] = field(default_factory=list)

    def sandbox(self, slot: int, policy: EgressPolicy | None) -> int:
        """A sandbox's namespace; without a policy, none is applied."""
        with inside(self.host):
            namespace = self.links.create(slot)
        self.sandboxes[slot] = namespace
        if policy is not None:
            self.network.apply(slot, policy)
        return namespace

    def end(self, slot: int) -> None:
        """End a sandbox and wait until its link is gone."""
        self.network.remove(slot)
        os.close(self.sandboxes.pop(slot))
        for _ in range(500):
            if slot not in self.network.slots():
                return
            select.select([], [], [], 0.01)
        raise AssertionError(f"the link of slot {slot} is still there")

    def listen(
        self, namespace: int, address: object, port: int, *, transparent: bool = False
    ) -> socket.socket:
        """A TCP listener, closed with the lab."""
        listener = self.stack.enter_context(make_socket(namespace, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if transparent:
            listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        listener.bind((str(address), port))
        listener.listen(512)
        return listener

    def receive(
        self, namespace: int, address: object, port: int, *, transparent: bool = False
    ) -> socket.socket:
        """A UDP socket that learns where datagrams were sent to, closed with the lab."""
        receiver = self.stack.enter_context(make_socket(namespace, socket.SOCK_DGRAM))
        receiver.setsockopt(socket.SOL_IP, IP_RECVORIGDSTADDR, 1)
        if transparent:
            receiver.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        receiver.bind((str(address), port))
        return receiver

    def client(self, namespace: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A socket in a namespace, closed with the lab."""
        made = self.stack.enter_context(make_socket(namespace, kind))
        self.clients.append(made)
        return made


def read_datagram(receiver: socket.socket) -> tuple[bytes, tuple[str, int], tuple[str, int]]:
    """A datagram, its source, and where it was sent to."""
    data, ancillary, _, source = receiver.recvmsg(65535, 256)
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_IP, IP_RECVORIGDSTADDR):
            port, address = struct.unpack_from(">H4s", value, 2)
            return data, source, (socket.inet_ntoa(address), port)
    raise AssertionError("no original destination")


def is_silent(*receivers: socket.socket) -> bool:
    """No connection and no datagram has come, and none comes in a moment."""
    return not select.select(receivers, [], [], SILENCE)[0]


@contextmanager
def lab(
    internal_allow: tuple[str, ...] = (),
    limits: TrafficLimits | None = None,
    *,
    max_sandboxes: int = 1,
    tracked: int = 262_144,
) -> Iterator[Lab]:
    """Everything set up, and taken away afterwards."""
    with ExitStack() as stack:
        host = _namespace(stack)
        far = _namespace(stack)
        with inside(host), NetlinkSocket(rt.NETLINK_ROUTE) as route:
            route.execute(
                [
                    rt.new_veth(
                        "up0",
                        50,
                        b"\x02\0\0\0\0\x02",
                        group=0,
                        peer="far0",
                        peer_index=51,
                        peer_mac=b"\x02\0\0\0\0\x01",
                        peer_netns=far,
                    )
                ]
            )
        run(
            host,
            "ip",
            "-batch",
            "-",
            stdin=f"""link set lo up
link set up0 up
addr add {UPLINK}/24 dev up0
route add default via {FAR}
""",
        )
        run(
            far,
            "ip",
            "-batch",
            "-",
            stdin=f"""link set lo up
link set far0 up
addr add {FAR}/24 dev far0
route add {SANDBOXES} via {UPLINK}
route add local default dev lo table main
""",
        )
        for namespace, index in ((host, 50), (far, 51)):
            _wait_for_link(namespace, index)
        with inside(host):
            network = HostNetwork(
                config(internal_allow, limits, max_sandboxes=max_sandboxes, tracked=tracked)
            )
            links = stack.enter_context(closing(Links(network.config.links, linux.mount_proc)))
        made = Lab(host, far, network, links, stack)
        try:
            with inside(host):
                network.setup()
            yield made
        finally:
            for namespace in made.sandboxes.values():
                os.close(namespace)
            with inside(host):
                network.teardown()


def _wait_for_link(namespace: int, index: int) -> None:
    """Packets are lost before."""
    with inside(namespace), NetlinkSocket(rt.NETLINK_ROUTE) as route:
        deadline = time.monotonic() + PATIENCE
        while not rt.is_operational(route.get(rt.get_link(index))):
            assert time.monotonic() < deadline, f"interface {index} does not come up"
            time.sleep(0.001)


def _namespace(stack: ExitStack) -> int:
    with fresh_namespace() as namespace:
        pass
    stack.callback(os.close, namespace)
    return namespace
