"""Network namespaces of sandboxes, each with its link to the host."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network

from sandgate.network import nftables, ruleset, sysctl
from sandgate.network import rtnetlink as rt
from sandgate.network.chains import namespace_chains
from sandgate.network.config import (
    FIRST_INDEX,
    HOST_ADDRESS,
    INTERFACE_PREFIX,
    LINK_GROUP,
    LinkConfig,
)
from sandgate.network.namespaces import fresh_namespace
from sandgate.network.netlink import Message, NetlinkSocket

_PEER_NAME, _PEER_INDEX = "eth0", 2
_HOST_MAC = bytes.fromhex("025347000000")

_PATIENCE, _POLL = 5.0, 0.0001
"""Seconds to wait for a new link at most, and between looks."""

_SETTINGS = {
    # Root in a sandbox has no capabilities over its network namespace; these replace them.
    "net.ipv4.ip_unprivileged_port_start": "0",
    "net.ipv4.ping_group_range": "0 2147483647",
    # A connection from the host may be sent on to 127.0.0.1.
    "net.ipv4.conf.all.route_localnet": "1",
}
_MULTICAST = IPv4Network("224.0.0.0/4")
"""Always denied; since no ICMP error is ever sent for it, the sandbox's own routes refuse it."""
_NO_IPV6 = "net.ipv6.conf.all.disable_ipv6"


class Links:
    """Makes the links of one node, in the network namespace where this object was made.

    For a single thread. The socket it holds has the host's powers over the network: a process
    forked from this one for a sandbox must close all descriptors that it does not know.
    """

    def __init__(self, config: LinkConfig, open_proc: Callable[[], int]) -> None:
        """`open_proc` mounts a proc file system and gives its descriptor. Raises OSError."""
        self._config = config
        self._open_proc = open_proc
        self._route = NetlinkSocket(rt.NETLINK_ROUTE)
        self._ipv6 = sysctl.exists("net.ipv6")
        self._settings = {**_SETTINGS, **({_NO_IPV6: "1"} if self._ipv6 else {})}
        self._rules = _namespace_rules()

    def close(self) -> None:
        """Close the socket and leave everything in place."""
        self._route.close()

    def create(self, slot: int) -> int:
        """A descriptor of a new network namespace with its link to the host, for the caller to own.

        Nothing passes until :meth:`~sandgate.network.host.HostNetwork.apply`. Namespace and link
        end with the last process in it and the last descriptor of it, a moment later; until then
        the slot cannot be used again, and this raises
        :class:`~sandgate.network.netlink.NetlinkError` with EEXIST. Raises OSError, ValueError.
        """
        address = self._config.address(slot)
        index = FIRST_INDEX + slot
        with fresh_namespace() as namespace:
            proc = self._open_proc()
            try:
                sysctl.write_through(proc, self._settings)
            finally:
                os.close(proc)
            with (
                closing(NetlinkSocket(rt.NETLINK_ROUTE)) as route,
                closing(NetlinkSocket(nftables.NETLINK_NETFILTER)) as netfilter,
            ):
                nftables.commit(netfilter, self._rules)
                self._route.execute(self._outer(slot, index, address, namespace))
                route.execute(self._inner(address))
                _wait_until_operational(self._route, index)
                return namespace

    def _outer(self, slot: int, index: int, address: IPv4Address, namespace: int) -> list[Message]:
        mac = b"\x02\x53" + address.packed
        veth = rt.new_veth(
            f"{INTERFACE_PREFIX}{slot}",
            index,
            _HOST_MAC,
            group=LINK_GROUP,
            peer=_PEER_NAME,
            peer_index=_PEER_INDEX,
            peer_mac=mac,
            peer_netns=namespace,
        )
        limit = self._config.download_mbit
        return [
            veth,
            *([rt.without_link_local(index)] if self._ipv6 else []),
            rt.link_up(index),
            rt.add_host_route(index, address, HOST_ADDRESS),
            rt.add_neighbour(index, address, mac),
            *([rt.shape(index, limit)] if limit is not None else []),
        ]

    def _inner(self, address: IPv4Address) -> list[Message]:
        limit = self._config.upload_mbit
        return [
            rt.link_up(rt.LOOPBACK_INDEX),
            rt.link_up(_PEER_INDEX),
            rt.add_address(_PEER_INDEX, address),
            rt.add_neighbour(_PEER_INDEX, HOST_ADDRESS, _HOST_MAC),
            rt.add_host_route(_PEER_INDEX, HOST_ADDRESS, address),
            rt.add_default_route(_PEER_INDEX, HOST_ADDRESS),
            rt.add_unreachable(_MULTICAST),
            *([rt.shape(_PEER_INDEX, limit)] if limit is not None else []),
        ]


def _namespace_rules() -> list[Message]:
    """The same in every sandbox's namespace."""
    table = nftables.Table(ruleset.TABLE)
    chains = namespace_chains()
    return [
        table.create(),
        *(table.create_chain(chain) for chain in chains),
        *(message for chain in chains for message in table.add_rules(chain)),
    ]


def _wait_until_operational(route: NetlinkSocket, index: int) -> None:
    """Without this, the first packets would be lost, and TCP waits a second to send again."""
    deadline = time.monotonic() + _PATIENCE
    while not rt.is_operational(route.get(rt.get_link(index))):
        if time.monotonic() > deadline:
            raise TimeoutError(f"interface {index} was not operational after {_PATIENCE} s")
        time.sleep(_POLL)
