"""What the kernel is told, as data: the table's fixed part, and the part of one sandbox.

Pure: :class:`~sandgate.network.host.HostNetwork` sends it, :func:`show_chains` prints it. All
chains that see packets of a sandbox end in a verdict or return to one that drops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from sandgate.network import statements as s
from sandgate.network.config import HOST_ADDRESS, INTERFACE_PREFIX, NetworkConfig
from sandgate.network.nftables import (
    AddressSet,
    Chain,
    Hook,
    PortSet,
    SandboxEntry,
    SandboxMap,
)
from sandgate.policy import RESOLVER, EgressPolicy, NetworkSet, ResolverAccess

TABLE = "sandgate"
"""Name of the table, on the host and in the sandboxes' namespaces."""

GATEWAY_MARK = 0x53470001
"""Mark of packets for a transparent socket; a routing rule delivers them to this machine."""

CLOSED, WEB = "closed", "web"
OUTGOING, INCOMING = SandboxMap("outgoing"), SandboxMap("incoming")

_SANDBOX_INTERFACES = f"{INTERFACE_PREFIX}*"
_LOOPBACK = IPv4Network("127.0.0.0/8")
_DNS = 53
_EVERYTHING = NetworkSet([IPv4Network("0.0.0.0/0")])


@dataclass(frozen=True, slots=True)
class SandboxRules:
    """Sets and chains of one sandbox, and how the two maps lead to the chains."""

    sets: tuple[AddressSet, ...]
    outgoing: Chain
    incoming: Chain
    interface: str
    address: IPv4Address

    @property
    def chains(self) -> tuple[Chain, Chain]:
        """Both chains."""
        return self.outgoing, self.incoming

    @property
    def entries(self) -> tuple[tuple[SandboxMap, SandboxEntry], ...]:
        """The maps' elements."""
        return (
            (OUTGOING, SandboxEntry(self.interface, self.address, self.outgoing.name)),
            (INCOMING, SandboxEntry(self.interface, self.address, self.incoming.name)),
        )


def closed_set(config: NetworkConfig) -> AddressSet:
    """The always-denied ranges."""
    return AddressSet(CLOSED, config.closed)


def web_ports() -> PortSet:
    """The ports on which names are seen."""
    return PortSet(WEB, (80, 443))


def base_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    """The part of the table that is there without any sandbox."""
    return (*_shared_chains(config), *_hooked_chains(config), *_gateway_chains(config))


def sandbox_rules(
    config: NetworkConfig, slot: int, address: IPv4Address, policy: EgressPolicy, generation: int
) -> SandboxRules:
    """The rules of the sandbox in `slot`.

    Each `generation` has sets of its own, so that a replacement never mixes with what it replaces.
    """
    allow = AddressSet(f"allow_{slot}_{generation}", policy.allow)
    deny = AddressSet(f"deny_{slot}_{generation}", policy.deny)
    judged, answered, sets = _by_address(allow, deny)
    outgoing = Chain(
        f"out_{slot}",
        (
            (s.ct_mark_set(int(address)),),
            (s.jump("settled"),),
            *_resolver_rules(policy),
            (s.ip_daddr(config.ingress_address), s.goto(_ingress_chain(config, policy))),
            (s.jump("never"),),
            *([(s.dport_in("tcp", WEB), s.goto("by_name"))] if policy.names else []),
            *judged,
        ),
    )
    interface = f"{INTERFACE_PREFIX}{slot}"
    return SandboxRules(sets, outgoing, Chain(f"in_{slot}", answered), interface, address)


def namespace_chain() -> Chain:
    """For the sandbox's own namespace: servers bound to 127.0.0.1 are reached from the host too.

    A connection that a socket waits for at the address it came to (or at any address) is left
    alone; another goes to the loopback, where it finds its server or is reset.
    """
    from_host = (s.iifname("eth0"), s.ip_saddr(HOST_ADDRESS), s.l4proto("tcp"))
    return Chain(
        "prerouting",
        (
            (*from_host, s.socket_transparent(0), s.accept()),
            (*from_host, s.dnat_ipv4(IPv4Address("127.0.0.1"))),
        ),
        Hook.DNAT,
    )


def show_chains(chains: Iterable[Chain]) -> str:
    """The chains in nft's language, for people."""
    lines = []
    for chain in chains:
        lines.append(f"chain {chain.name} {{")
        if (hook := chain.hook) is not None:
            lines.append(f"    type {hook.type} hook {hook.hook} priority {hook.priority};")
        lines += [f"    {s.show(rule)}" for rule in chain.rules]
        lines.append("}")
    return "\n".join(lines)


def _by_address(
    allow: AddressSet, deny: AddressSet
) -> tuple[tuple[s.Rule, ...], tuple[s.Rule, ...], tuple[AddressSet, ...]]:
    """Rules for packets out, for answers to them, and the sets that both need.

    Allow is asked first, then deny; what neither has, passes.
    """
    if allow.networks == _EVERYTHING:
        return ((s.accept(),),), ((s.accept(),),), ()
    out: list[s.Rule] = []
    back: list[s.Rule] = []
    sets = []
    if allow.networks:
        sets.append(allow)
        out.append((s.ip_daddr_in(allow.name), s.accept()))
        back.append((s.ct_original_daddr_in(allow.name), s.accept()))
    if deny.networks == _EVERYTHING:
        out.append((s.goto("refuse"),))
        back.append((s.goto("cut"),))
        return tuple(out), tuple(back), tuple(sets)
    if deny.networks:
        sets.append(deny)
        out.append((s.ip_daddr_in(deny.name), s.goto("refuse")))
        back.append((s.ct_original_daddr_in(deny.name), s.goto("cut")))
    out.append((s.accept(),))
    back.append((s.accept(),))
    return tuple(out), tuple(back), tuple(sets)


def _resolver_rules(policy: EgressPolicy) -> tuple[s.Rule, ...]:
    chain = "refuse" if policy.resolver is ResolverAccess.NONE else "resolver"
    return tuple(
        (s.ip_daddr(RESOLVER), s.dport(protocol, _DNS), s.goto(chain))
        for protocol in ("udp", "tcp")
    )


def _ingress_chain(config: NetworkConfig, policy: EgressPolicy) -> str:
    if policy.names:
        return "ingress_by_name"
    return "ingress" if policy.decide(config.ingress_address).allowed else "refuse"


def _shared_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    established_transparent = (
        s.socket_transparent(1),
        s.mark_set(GATEWAY_MARK),
        s.accept(),
    )
    ingress_port = s.dport("tcp", config.https_port)
    return (
        Chain(
            "refuse",
            (
                (s.l4proto("tcp"), s.reject_with_tcp_reset()),
                (s.reject_as_prohibited(),),
                (s.drop(),),
            ),
        ),
        # An answer that the policy no longer admits: the far side is told, the sandbox is as soon
        # as it sends.
        Chain("cut", ((s.l4proto("tcp"), s.reject_with_tcp_reset()), (s.drop(),))),
        Chain(
            "settled",
            (
                (s.ip_hdrlength_above(5), s.goto("refuse")),
                (s.ct_direction_reply(), s.ct_state("established"), s.accept()),
                # A listener would match too, but its packets are not of an established connection.
                (s.ct_state("established"), s.dport_in("tcp", WEB), *established_transparent),
                (
                    s.ct_state("established"),
                    s.ip_daddr(config.ingress_address),
                    ingress_port,
                    *established_transparent,
                ),
            ),
        ),
        Chain(
            "never",
            (
                (s.ip_daddr_in(CLOSED), s.goto("refuse")),
                (s.fib_daddr_not_unicast(), s.goto("refuse")),
            ),
        ),
        Chain(
            "resolver",
            (
                *(
                    (
                        s.l4proto(protocol),
                        s.tproxy(config.gateway_address, _DNS),
                        s.mark_set(GATEWAY_MARK),
                        s.accept(),
                    )
                    for protocol in ("udp", "tcp")
                ),
                (s.goto("refuse"),),
            ),
        ),
        Chain(
            "by_name",
            (
                (
                    s.l4proto("tcp"),
                    s.tproxy(config.gateway_address, config.gateway_port),
                    s.mark_set(GATEWAY_MARK),
                    s.accept(),
                ),
                (s.goto("refuse"),),
            ),
        ),
        Chain("ingress", ((ingress_port, s.accept()), (s.goto("refuse"),))),
        Chain("ingress_by_name", ((ingress_port, s.goto("by_name")), (s.goto("refuse"),))),
    )


def _hooked_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    reply = (s.ct_direction_reply(), s.ct_state("established"))
    from_sandbox, to_sandbox = s.iifname(_SANDBOX_INTERFACES), s.oifname(_SANDBOX_INTERFACES)
    own = (config.ingress_address, config.gateway_address, HOST_ADDRESS)
    return (
        Chain(
            "prerouting",
            (
                (s.iifname_not(_SANDBOX_INTERFACES), s.accept()),
                (s.not_ipv4(), s.drop()),
                (s.interface_and_address_vmap("in", OUTGOING.name),),
                (s.drop(),),
            ),
            Hook.PREROUTING,
        ),
        Chain(
            "input",
            (
                (from_sandbox, s.goto("input_sandbox")),
                (s.iifname("lo"), s.accept()),
                *((s.ip_daddr(address), s.drop()) for address in own),
            ),
            Hook.INPUT,
        ),
        Chain(
            "input_sandbox",
            (
                (s.mark(GATEWAY_MARK), s.accept()),
                (*reply, s.accept()),
                (
                    s.ip_daddr(config.ingress_address),
                    s.dport("tcp", config.https_port),
                    s.accept(),
                ),
                (s.goto("refuse"),),
            ),
        ),
        Chain(
            "forward",
            (
                (to_sandbox, s.goto("forward_to_sandbox")),
                (from_sandbox, s.goto("forward_from_sandbox")),
            ),
            Hook.FORWARD,
        ),
        Chain(
            "forward_to_sandbox",
            (
                (from_sandbox, s.drop()),
                (s.not_ipv4(), s.drop()),
                (
                    s.ct_direction_reply(),
                    s.ct_state("established", "related"),
                    s.interface_and_address_vmap("out", INCOMING.name),
                ),
                (s.drop(),),
            ),
        ),
        Chain(
            "forward_from_sandbox",
            (
                # Not tracked means not translated: it would carry an address of the sandboxes.
                (s.ct_state("invalid"), s.drop()),
                # Judged already; once more, for another table may have changed the destination.
                (s.not_ipv4(), s.drop()),
                (s.ip_daddr_in(CLOSED), s.drop()),
                (s.accept(),),
            ),
        ),
        Chain(
            "postrouting",
            (
                (
                    s.ip_saddr(config.sandboxes),
                    s.oifname_not(_SANDBOX_INTERFACES),
                    s.oifname_not("lo"),
                    s.masquerade(),
                ),
            ),
            Hook.SNAT,
        ),
    )


def _gateway_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    """What this machine may send: a second barrier behind the gateway's own checks."""
    to_sandbox = s.oifname(_SANDBOX_INTERFACES)
    rules: list[s.Rule] = [
        (to_sandbox, s.not_ipv4(), s.drop()),
        (to_sandbox, s.accept()),
    ]
    if config.gateway_uid is None:
        return (Chain("output", tuple(rules), Hook.OUTPUT),)
    rules.append((s.skuid(config.gateway_uid), s.goto("gateway")))
    protocols = ("udp", "tcp")
    resolvers: list[IPv4Address | IPv4Network] = [*config.upstream_dns, _LOOPBACK]
    dns = [
        (s.ip_daddr(resolver), s.dport(protocol, _DNS), s.accept())
        for resolver in resolvers
        for protocol in protocols
    ]
    gateway = Chain(
        "gateway",
        (
            (s.ct_direction_reply(), s.ct_state("established"), s.accept()),
            (s.not_ipv4(), s.goto("refuse")),
            *dns,
            (s.ip_daddr(config.ingress_address), s.dport("tcp", config.https_port), s.accept()),
            (s.jump("never"),),
        ),
    )
    return (gateway, Chain("output", tuple(rules), Hook.OUTPUT))
