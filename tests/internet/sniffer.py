"""Sees every opening packet on a link, also those that no program ever gets."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from internet.contacts import Journal

_ETH_P_ALL = 0x0003
_SO_ATTACH_FILTER = 26
_ROUTER_SEARCH = (IPv6Address("ff02::2"), IPv6Address("ff02::16"))
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}

# Classic BPF over the IP header (a SOCK_DGRAM packet socket strips the link header): everything
# but the TCP packets of connections under way, of which a download makes hundreds of thousands.
# Those, too, if they come from the range of sandboxes, from which nothing may ever come.
_FILTER = [
    (0x28, 0, 0, 0xFFFFF000),  # ldh  protocol (SKF_AD_OFF + SKF_AD_PROTOCOL)
    (0x15, 0, 9, 0x0800),  # jeq  #IPv4, else accept
    (0x20, 0, 0, 12),  # ld   [12], source address
    (0x54, 0, 0, 0xFFFE0000),  # and  its network
    (0x15, 6, 0, 0xC6120000),  # jeq  #198.18.0.0/15, accept
    (0x30, 0, 0, 9),  # ldb  [9], IP protocol
    (0x15, 0, 4, 6),  # jeq  #TCP, else accept
    (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf), header length
    (0x50, 0, 0, 13),  # ldb  [x + 13], TCP flags
    (0x54, 0, 0, 0x12),  # and  SYN|ACK
    (0x15, 1, 0, 0x10),  # jeq  #ACK alone, drop
    (0x06, 0, 0, 0x40000),  # accept
    (0x06, 0, 0, 0),  # drop
]


class Sniffer:
    """Writes to a journal what arrives on one interface (`link`) of this process's namespace."""

    def __init__(self, interface: str, journal: Journal) -> None:
        self._journal = journal
        self._interface = interface
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        program = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
        buffer = ctypes.create_string_buffer(program, len(program))
        self.socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("HL", len(_FILTER), ctypes.addressof(buffer)),
        )
        self.socket.bind((interface, _ETH_P_ALL))

    def drain(self) -> None:
        """Note all packets that have arrived by now."""
        while True:
            try:
                data, origin = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENETDOWN:  # the interface was taken away
                    raise
                continue
            ethertype, packet_type = origin[1], origin[2]
            if packet_type != socket.PACKET_OUTGOING:
                self._note(ethertype, data)

    def close(self) -> None:
        """Stop listening."""
        self.socket.close()

    def _note(self, ethertype: int, data: bytes) -> None:
        if ethertype == 0x86DD and len(data) >= 40:
            source, destination = IPv6Address(data[8:24]), IPv6Address(data[24:40])
            if source.is_link_local and destination in _ROUTER_SEARCH:
                return  # the kernel of the node's own end of the link looks for a router
            self._journal.add(
                "packet",
                "ipv6",
                str(source),
                str(destination),
                link=self._interface,
                next_header=data[6],
            )
        elif ethertype == 0x0800 and len(data) >= 20:
            header = (data[0] & 15) * 4
            protocol = data[9]
            ports = data[header : header + 4]
            port = struct.unpack("!HH", ports)[1] if protocol in (6, 17) and len(ports) == 4 else 0
            self._journal.add(
                "packet",
                _PROTOCOLS.get(protocol, str(protocol)),
                str(IPv4Address(data[12:16])),
                str(IPv4Address(data[16:20])),
                port,
                link=self._interface,
                length=len(data) - header,
                options=header > 20,
            )
