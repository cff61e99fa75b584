"""The gateway process: opens its sockets as root, gives root up for good, then serves."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import uvloop

from sandgate.decisions.feed import Feed
from sandgate.egress.control import ControlServer, listen
from sandgate.egress.decision_log import DecisionLog
from sandgate.egress.dial import Dialer
from sandgate.egress.dns_gateway import (
    IP_RECVORIGDSTADDR,
    IP_TRANSPARENT,
    DnsGateway,
)
from sandgate.egress.explain import Explainer
from sandgate.egress.own_addresses import OwnAddresses
from sandgate.egress.privileges import Identity, drop_privileges
from sandgate.egress.proxy import Proxy, connection_limit
from sandgate.egress.reactor import Reactor
from sandgate.egress.session import NAME_SECONDS, SessionContext
from sandgate.egress.table import SandboxTable
from sandgate.egress.timeouts import Timeouts
from sandgate.egress.upstreams import DNS_PORT, Upstreams
from sandgate.guard import AddressGuard
from sandgate.limits import TrafficLimits

_BACKLOG = 4096
_RESOLV_CONF = Path("/etc/resolv.conf")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """All that the gateway is told at its start, as one JSON object on standard input."""

    gateway_address: IPv4Address
    """Address its listeners are bound to."""
    ingress_address: IPv4Address
    """Where the node serves sandbox URLs to sandboxes."""
    https_port: int
    domain: str
    """The node's domain, normalised: names at or under it lead to `ingress_address`."""
    control_socket: Path
    decisions_socket: Path
    """Where the control process hears of decisions."""
    sandboxes: IPv4Network
    """Range of the sandboxes' addresses."""
    tcp_port: int = 15001
    upstream_dns: tuple[IPv4Address, ...] = ()
    """Servers to ask. Empty: those of /etc/resolv.conf."""
    internal_allow: tuple[IPv4Network, ...] = ()
    user: str | None = None
    """User to run as. None: stay who we are, without capabilities."""
    control_user: str | None = None
    """Who may tell of sandboxes, besides root. None: `user`."""
    limits: TrafficLimits = field(default_factory=TrafficLimits)

    def to_json(self) -> str:
        """The form that :meth:`from_json` reads."""
        return json.dumps(
            {
                "gateway_address": str(self.gateway_address),
                "ingress_address": str(self.ingress_address),
                "https_port": self.https_port,
                "domain": self.domain,
                "control_socket": str(self.control_socket),
                "decisions_socket": str(self.decisions_socket),
                "sandboxes": str(self.sandboxes),
                "tcp_port": self.tcp_port,
                "upstream_dns": [str(address) for address in self.upstream_dns],
                "internal_allow": [str(network) for network in self.internal_allow],
                "user": self.user,
                "control_user": self.control_user,
                "limits": self.limits.to_json(),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> GatewayConfig:
        """Raises ValueError or KeyError on anything but what :meth:`to_json` writes."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            gateway_address=IPv4Address(data["gateway_address"]),
            ingress_address=IPv4Address(data["ingress_address"]),
            https_port=int(data["https_port"]),
            domain=str(data["domain"]),
            control_socket=Path(data["control_socket"]),
            decisions_socket=Path(data["decisions_socket"]),
            sandboxes=IPv4Network(data["sandboxes"]),
            tcp_port=int(data["tcp_port"]),
            upstream_dns=tuple(IPv4Address(entry) for entry in data["upstream_dns"]),
            internal_allow=tuple(IPv4Network(entry) for entry in data["internal_allow"]),
            user=None if data["user"] is None else str(data["user"]),
            control_user=None if data["control_user"] is None else str(data["control_user"]),
            limits=TrafficLimits.from_json(data["limits"]),
        )


@dataclass(frozen=True, slots=True)
class Sockets:
    """What has to be opened before root is given up."""

    tcp: socket.socket
    dns_udp: socket.socket
    dns_tcp: socket.socket
    control: socket.socket


def parse_resolv_conf(text: str) -> tuple[IPv4Address, ...]:
    """The IPv4 name servers in the text of a resolv.conf(5), in order, without repetition."""
    found: dict[IPv4Address, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found[IPv4Address(words[1])] = None
            except ValueError:
                continue  # IPv6: the gateway asks over IPv4 only
    return tuple(found)


def upstream_servers(configured: Sequence[IPv4Address]) -> tuple[IPv4Address, ...]:
    """The servers to ask. Raises ValueError if there are none."""
    if configured:
        return tuple(configured)
    found = parse_resolv_conf(_RESOLV_CONF.read_text(encoding="utf-8", errors="replace"))
    if not found:
        raise ValueError(
            f"upstream_dns: unset, and {_RESOLV_CONF} names no IPv4 server; set upstream_dns"
        )
    return found


def open_sockets(config: GatewayConfig, control: Identity) -> Sockets:
    """Open all sockets; the control socket last, since it says that the gateway is there.

    Raises OSError. Needs CAP_NET_ADMIN (transparent sockets) and CAP_NET_BIND_SERVICE.
    """
    gateway = str(config.gateway_address)
    with ExitStack() as opened:

        def transparent(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
            sock = opened.enter_context(socket.socket(socket.AF_INET, kind))
            sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            if kind is socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVORIGDSTADDR, 1)
            sock.bind((address, port))
            if kind is socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
            sock.setblocking(False)
            return sock

        sockets = Sockets(
            tcp=transparent(socket.SOCK_STREAM, gateway, config.tcp_port),
            dns_udp=transparent(socket.SOCK_DGRAM, gateway, DNS_PORT),
            dns_tcp=transparent(socket.SOCK_STREAM, gateway, DNS_PORT),
            control=opened.enter_context(listen(config.control_socket, control)),
        )
        opened.pop_all()
    return sockets


async def serve(config: GatewayConfig, sockets: Sockets, control: Identity) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    table = SandboxTable()
    feed = Feed("egress", config.decisions_socket, lambda: {"connections": table.connections})
    log = DecisionLog(time.time, feed)
    guard, own = AddressGuard(config.sandboxes, config.internal_allow), OwnAddresses()
    upstreams = Upstreams(config.upstream_dns, guard, own)
    reactor = Reactor(loop)
    dialer = Dialer(
        reactor,
        loop,
        upstreams=upstreams,
        guard=guard,
        own=own,
        ingress=(config.ingress_address, config.https_port),
        domain=config.domain,
    )
    limits = config.limits
    context = SessionContext(table, dialer, log, loop, Timeouts(loop, NAME_SECONDS))
    proxy = Proxy(context, sockets.tcp, connection_limit(), limits.connections)
    dns = DnsGateway(
        table=table,
        upstreams=upstreams,
        log=log,
        ingress=config.ingress_address,
        domain=config.domain,
        rate=limits.dns_queries,
    )
    server = ControlServer(table, config.sandboxes, {0, control.uid}, Explainer(dialer))
    stop = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_, stop.set)
    servers = [
        await dns.serve_tcp(sockets.dns_tcp),
        await server.serve(sockets.control),
    ]
    dns.serve_udp(sockets.dns_udp)
    proxy.start()
    gc.collect()
    gc.freeze()  # what was loaded stays; collections need not look at it again
    telling = loop.create_task(feed.run())
    _logger.info("serving")
    await stop.wait()
    await dns.close()
    proxy.stop()
    for serving in servers:
        serving.close()
    table.retain([])
    reactor.close()
    await upstreams.close()
    telling.cancel()
    feed.close()


def run(config: GatewayConfig) -> None:
    """Run the gateway with `config`. Raises ValueError or OSError if it cannot start."""
    config = replace(config, upstream_dns=upstream_servers(config.upstream_dns))
    identity = Identity.of(config.user)
    control = Identity.of(config.control_user or config.user)
    sockets = open_sockets(config, control)
    drop_privileges(identity)
    uvloop.run(serve(config, sockets, control))
