"""Sends packets of several sandboxes for real, and tells what became of each."""

from __future__ import annotations

import os
import select
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address

from network import netlab
from network.netlab import GATEWAY, GATEWAY_PORT, HTTPS_PORT, INGRESS, UPLINK, Lab, run
from network.packets import (
    ACK,
    ICMP,
    PROHIBITED_CODE,
    RST,
    SYN,
    TCP,
    UDP,
    UNREACHABLE,
    Packet,
    Seen,
    Shape,
    latest,
)
from sandgate.network import HOST_ADDRESS
from sandgate.network.namespaces import inside

_ETH_P_IP, _ETH_P_ALL = 0x0800, 3
_OUTGOING = 4
_HOST_MAC = bytes.fromhex("025347000000")
HOST_PORTS = (7, 22, 53, 80, 443, HTTPS_PORT, GATEWAY_PORT)
"""Ports on which the node's host listens at all its addresses."""


class Fate(StrEnum):
    """What became of a packet."""

    ARRIVED = "arrived"
    """It left the node."""
    GATEWAY = "gateway"
    """The gateway's listener for names has it."""
    RESOLVER = "resolver"
    """The gateway's DNS has it."""
    INGRESS = "ingress"
    """The listener for sandbox URLs has it."""
    RESET = "reset"
    PROHIBITED = "prohibited"
    SILENCE = "silence"
    """It went nowhere, and nobody was told."""
    HOST = "host"
    """A service of the host has it: never right."""
    SANDBOX = "sandbox"
    """Another sandbox has it: never right."""
    ODD = "odd"
    """Something else was answered: never right."""


_SEGMENT_SIZES = {1001: Fate.GATEWAY, 1002: Fate.RESOLVER, 1003: Fate.INGRESS, 1004: Fate.HOST}
"""Listeners are told apart by the maximum segment size that they answer with."""


@dataclass(slots=True)
class _Sandbox:
    address: IPv4Address
    wire: socket.socket
    """Sends frames past the sandbox's own kernel, and sees all that comes."""


@dataclass(slots=True)
class Observers:
    """Eyes at all ends of a lab's network."""

    lab: Lab
    far: socket.socket
    datagrams: dict[socket.socket, Fate]
    sandboxes: list[_Sandbox] = field(default_factory=list)
    _number: int = 0

    def fates(self, packets: Sequence[tuple[int, Packet]], loud: set[int]) -> list[set[Fate]]:
        """What became of each packet, sent by the sandbox with that index.

        Those whose index in `packets` is in `loud` are waited for. More than one fate, like a
        packet that arrives and is refused, too, is wrong whatever was expected.
        """
        first = self._number
        self._number += len(packets)
        seen: defaultdict[int, set[Fate]] = defaultdict(set)
        for number, (sender, packet) in enumerate(packets, first):
            self._send(sender, packet, number)
        waiting = {first + index for index in loud}
        deadline = time.monotonic() + netlab.PATIENCE
        while not waiting <= seen.keys() and time.monotonic() < deadline:
            self._look(seen, deadline - time.monotonic())
        self._settle(seen)
        return [seen.get(number) or {Fate.SILENCE} for number in range(first, first + len(packets))]

    def _settle(self, seen: dict[int, set[Fate]]) -> None:
        """Wait for what is under way: packets stay in order, so one that comes back is the last."""
        for sender, sandbox in enumerate(self.sandboxes):
            number = self._number
            self._number += 1
            last = Packet(sandbox.address, IPv4Address("1.2.3.4"), UDP, 9, shape=Shape.OPTIONS)
            self._send(sender, last, number)
            deadline = time.monotonic() + netlab.PATIENCE
            while number not in seen:
                assert time.monotonic() < deadline, (
                    f"the last packet of sandbox {sender} is not refused"
                )
                self._look(seen, deadline - time.monotonic())

    def _send(self, sender: int, packet: Packet, number: int) -> None:
        sandbox = self.sandboxes[sender]
        mac = b"\x02\x53" + sandbox.address.packed
        for frame in packet.frames(number, _HOST_MAC, mac):
            sandbox.wire.send(frame)

    def _look(self, seen: dict[int, set[Fate]], patience: float) -> None:
        wires = {sandbox.wire: index for index, sandbox in enumerate(self.sandboxes)}
        ready, _, _ = select.select([self.far, *self.datagrams, *wires], [], [], max(patience, 0))
        for receiver in ready:
            for data in _read_all(receiver):
                if receiver is self.far:
                    found = self._out(data), Fate.ARRIVED
                elif receiver in wires:
                    found = self._back(data[14:])
                else:
                    found = Seen(*(INGRESS,) * 2, UDP, 0, data).number(), self.datagrams[receiver]
                number, fate = found
                if number is not None:
                    seen[number].add(fate)

    def _out(self, data: bytes) -> int | None:
        """Which packet has left; by its IP header, for it may be in fragments again."""
        packet = Seen.parse(data)
        return None if packet is None else latest(packet.identification, self._number)

    def _back(self, data: bytes) -> tuple[int | None, Fate]:
        """Which packet this tells a sandbox about, and what."""
        packet = Seen.parse(data)
        if packet is None:
            return None, Fate.ODD
        if packet.protocol == TCP:
            answered = latest(int.from_bytes(packet.payload[2:4]), self._number)
            match packet.flags & (SYN | ACK | RST):
                case 0x02:
                    return packet.number(), Fate.SANDBOX
                case 0x12:
                    size = packet.maximum_segment() or 0
                    return answered, _SEGMENT_SIZES.get(size, Fate.ODD)
                case flags:
                    return answered, Fate.RESET if flags & RST else Fate.ODD
        if packet.protocol == ICMP and packet.payload[0] == UNREACHABLE:
            about = Seen.parse(packet.payload[8:])
            if about is not None:
                prohibited = packet.payload[1] == PROHIBITED_CODE
                answered = latest(about.identification, self._number)
                return answered, Fate.PROHIBITED if prohibited else Fate.ODD
        return packet.number(), Fate.SANDBOX


def _read_all(receiver: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data, _, _, address = receiver.recvmsg(65535)
        except BlockingIOError:
            return
        outgoing = len(address) == 5 and address[2] == _OUTGOING
        if not outgoing:
            yield data


@contextmanager
def observers(lab: Lab, slots: Sequence[int]) -> Iterator[Observers]:
    """Sandboxes in `slots`, without policies, and eyes everywhere."""
    with ExitStack() as stack:
        # In a lab of its own, on one processor, so that packets stay in order.
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        stack.callback(os.sched_setaffinity, 0, before)
        for name, value in (
            ("net.ipv4.ipfrag_time", 1),  # fragments that stay alone are given up soon
            ("net.ipv4.tcp_max_syn_backlog", 65536),
            ("net.core.somaxconn", 65536),
        ):
            run(lab.host, "sysctl", "-q", "-w", f"{name}={value}")
        # The far side sees everything and says nothing.
        run(lab.far, "nft", "add table ip quiet")
        run(
            lab.far,
            "nft",
            "add chain ip quiet input { type filter hook input priority 0 ; policy drop ; }",
        )
        far = stack.enter_context(_wire(lab.far, "far0", socket.SOCK_DGRAM, _ETH_P_IP))
        datagrams: dict[socket.socket, Fate] = {}
        for address in (INGRESS, GATEWAY, HOST_ADDRESS, IPv4Address(UPLINK)):
            for port in HOST_PORTS:
                special = {
                    (INGRESS, HTTPS_PORT): 1003,
                    (GATEWAY, GATEWAY_PORT): 1001,
                    (GATEWAY, 53): 1002,
                }
                size = special.get((address, port), 1004)
                listener = stack.enter_context(netlab.make_socket(lab.host, socket.SOCK_STREAM))
                if address == GATEWAY:
                    listener.setsockopt(socket.SOL_IP, netlab.IP_TRANSPARENT, 1)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, size)
                listener.bind((str(address), port))
                listener.listen(65535)
                receiver = stack.enter_context(netlab.make_socket(lab.host, socket.SOCK_DGRAM))
                if address == GATEWAY:
                    receiver.setsockopt(socket.SOL_IP, netlab.IP_TRANSPARENT, 1)
                receiver.setblocking(False)
                receiver.bind((str(address), port))
                resolver = (address, port) == (GATEWAY, 53)
                datagrams[receiver] = Fate.RESOLVER if resolver else Fate.HOST
        made = Observers(lab, far, datagrams)
        for slot in slots:
            wire = _wire(lab.sandbox(slot, None), "eth0", socket.SOCK_RAW, _ETH_P_ALL)
            stack.enter_context(wire)
            made.sandboxes.append(_Sandbox(lab.network.address(slot), wire))
        yield made


def _wire(namespace: int, interface: str, kind: int, protocol: int) -> socket.socket:
    with inside(namespace):
        wire = socket.socket(socket.AF_PACKET, kind, socket.htons(protocol))
    wire.bind((interface, protocol))
    wire.setblocking(False)
    wire.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
    return wire
