"""The fixed part of the table: the chains that are there without any sandbox. Pure.

All chains that see packets of a sandbox end in a verdict or return to one that drops.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from sandgate.network import actions as do
from sandgate.network import matches as when
from sandgate.network.config import HOST_ADDRESS, INTERFACE_PREFIX, NetworkConfig
from sandgate.network.limits import asked, ends_soon, limiting_chains, opened
from sandgate.network.nftables import Chain, Hook
from sandgate.network.refusals import refusal, refusing_chains, silent_refusal
from sandgate.network.ruleset import (
    BY_NAME,
    CLOSED,
    CUT,
    GATEWAY_MARK,
    INCOMING,
    INGRESS,
    LINKS,
    NAMED,
    OUTGOING,
    RESOLVING,
)
from sandgate.network.statements import Rule
from sandgate.policy import RESOLVER
from sandgate.reasons import Reason

_SANDBOX_INTERFACES = f"{INTERFACE_PREFIX}*"
_LOOPBACK = IPv4Network("127.0.0.0/8")
_DNS = 53


def base_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    """The part of the table that is there without any sandbox."""
    return (
        *refusing_chains(),
        *limiting_chains(config.limits, config.shares, _SANDBOX_INTERFACES, RESOLVER),
        *_shared_chains(config),
        *_hooked_chains(config),
        *_gateway_chains(config),
    )


def namespace_chains() -> tuple[Chain, ...]:
    """For the sandbox's own namespace: servers bound to 127.0.0.1 are reached from the host too.

    A connection that a socket waits for at the address it came to (or at any address) is left
    alone; another goes to the loopback, where it finds its server or is reset. Only connections
    from the host are tracked, so that a sandbox cannot fill the kernel's memory with others.
    """
    from_host = (when.iifname("eth0"), when.ip_saddr(HOST_ADDRESS), when.l4proto("tcp"))
    to_host = (when.ip_daddr(HOST_ADDRESS), when.l4proto("tcp"))
    return (
        Chain("untracked_in", ((*from_host, do.accept()), (do.notrack(),)), Hook.RAW_PREROUTING),
        Chain("untracked_out", ((*to_host, do.accept()), (do.notrack(),)), Hook.RAW_OUTPUT),
        Chain(
            "prerouting",
            (
                (*from_host, when.socket_transparent(0), do.accept()),
                (*from_host, do.dnat_ipv4(IPv4Address("127.0.0.1"))),
            ),
            Hook.DNAT,
        ),
    )


def _shared_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    established_transparent = (
        when.socket_transparent(1),
        do.mark_set(GATEWAY_MARK),
        do.accept(),
    )
    ingress_port = when.dport("tcp", config.https_port)
    return (
        # An answer that the policy no longer admits: the far side is told, the sandbox is as soon
        # as it sends.
        Chain(CUT, ((when.l4proto("tcp"), do.reject_with_tcp_reset()), (do.drop(),))),
        Chain(
            "settled",
            (
                (when.ip_hdrlength_above(5), do.goto(refusal(Reason.IP_OPTIONS))),
                # Answers to the host itself and to nobody else: should the kernel have forgotten a
                # sandbox's query, the gateway's answer to it looks like the host's beginning.
                (
                    when.ip_daddr(HOST_ADDRESS),
                    when.ct_direction_reply(),
                    when.ct_state("established"),
                    do.accept(),
                ),
                # What the gateway has stays with it, which judges it again. A listener would match
                # too, but its packets are not of an established connection that ends here.
                (
                    when.l4proto("tcp"),
                    when.ct_state("established"),
                    when.ct_source_not_translated(),
                    *established_transparent,
                ),
            ),
        ),
        Chain(
            "never",
            (
                (when.ip_in("daddr", CLOSED), do.goto(refusal(Reason.ALWAYS_DENIED))),
                (when.fib_daddr_not_unicast(), do.goto(refusal(Reason.ALWAYS_DENIED))),
            ),
        ),
        Chain(
            "resolver",
            (
                (when.saddr_daddr_in(RESOLVING.name), *asked(config.limits)),
                *(
                    (
                        when.saddr_daddr_in(RESOLVING.name),
                        when.l4proto(protocol),
                        do.tproxy(config.gateway_address, _DNS),
                        do.mark_set(GATEWAY_MARK),
                        do.accept(),
                    )
                    for protocol in ("udp", "tcp")
                ),
                (when.saddr_daddr_in(RESOLVING.name), do.goto(refusal(Reason.GATEWAY_DOWN))),
                (do.goto(refusal(Reason.NO_RESOLVER)),),
            ),
        ),
        Chain(
            "gateway_tcp",
            (
                (
                    when.l4proto("tcp"),
                    do.tproxy(config.gateway_address, config.gateway_port),
                    do.mark_set(GATEWAY_MARK),
                    do.accept(),
                ),
                (do.goto(refusal(Reason.GATEWAY_DOWN)),),
            ),
        ),
        Chain(
            "ingress_address",
            (
                (
                    ingress_port,
                    when.ct_state("established"),
                    when.ip_in("saddr", INGRESS.name),
                    do.accept(),
                ),
                (ingress_port, when.ip_in("saddr", BY_NAME.name), do.goto("gateway_tcp")),
                (ingress_port, when.ip_in("saddr", INGRESS.name), do.accept()),
                (ingress_port, do.goto(refusal(Reason.DENIED_ADDRESS))),
                (do.goto(refusal(Reason.ALWAYS_DENIED)),),
            ),
        ),
    )


def _hooked_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    reply = (when.ct_direction_reply(), when.ct_state("established"))
    from_sandbox, to_sandbox = when.iifname(_SANDBOX_INTERFACES), when.oifname(_SANDBOX_INTERFACES)
    own = (config.ingress_address, config.gateway_address, HOST_ADDRESS)
    return (
        Chain(
            "prerouting",
            (
                (when.iifname_not(_SANDBOX_INTERFACES), do.accept()),
                (when.not_ipv4(), do.goto(silent_refusal(Reason.IPV6))),
                (when.unknown_link(LINKS.name), do.goto(silent_refusal(Reason.SPOOFED_SOURCE))),
                (do.ct_mark_set_saddr(),),
                (do.jump("settled"),),
                *(
                    (when.ip_daddr(RESOLVER), when.dport(protocol, _DNS), do.goto("resolver"))
                    for protocol in ("udp", "tcp")
                ),
                (when.ip_daddr(config.ingress_address), do.goto("ingress_address")),
                (do.jump("never"),),
                (do.jump("to_gateway"),),
                # The only way there: at every change the kernel follows all ways to all sandboxes.
                (do.goto("by_address"),),
            ),
            Hook.PREROUTING,
        ),
        Chain(
            "to_gateway",
            (
                # What was forwarded once is not the gateway's: it goes by address to its end.
                (when.ct_state("established"), when.ct_source_translated(), do.back()),
                *(
                    (
                        when.dport(protocol, _DNS),
                        when.saddr_daddr_in(RESOLVING.name),
                        do.goto("resolver"),
                    )
                    for protocol in ("udp", "tcp")
                ),
                (when.saddr_dport_in(NAMED.name), do.goto("gateway_tcp")),
            ),
        ),
        Chain(
            "by_address",
            (
                (do.address_vmap("saddr", OUTGOING.name),),
                (do.goto(refusal(Reason.DENIED_ADDRESS)),),
            ),
        ),
        Chain(
            "input",
            (
                (from_sandbox, do.goto("input_sandbox")),
                (when.iifname("lo"), do.accept()),
                *((when.ip_daddr(address), do.drop()) for address in own),
                (when.dport("tcp", config.https_port), *ends_soon()),
            ),
            Hook.INPUT,
        ),
        Chain(
            "input_sandbox",
            (
                opened(),
                (when.mark(GATEWAY_MARK), do.accept()),
                (*reply, do.accept()),
                (
                    when.ip_daddr(config.ingress_address),
                    when.dport("tcp", config.https_port),
                    do.accept(),
                ),
                (do.goto(refusal(Reason.ALWAYS_DENIED)),),
            ),
        ),
        Chain(
            "forward",
            (
                (to_sandbox, do.goto("forward_to_sandbox")),
                (from_sandbox, do.goto("forward_from_sandbox")),
            ),
            Hook.FORWARD,
        ),
        Chain(
            "forward_to_sandbox",
            (
                (from_sandbox, do.drop()),
                (when.not_ipv4(), do.drop()),
                (
                    when.ct_direction_reply(),
                    when.ct_state("established", "related"),
                    do.address_vmap("daddr", INCOMING.name),
                ),
                (when.ct_direction_reply(), when.ct_state("established"), do.goto(CUT)),
                (do.drop(),),
            ),
        ),
        Chain(
            "forward_from_sandbox",
            (
                # Meant for a socket of this machine; it found none, and must not go on as it is.
                (when.mark(GATEWAY_MARK), do.drop()),
                # Not tracked means not translated: it would carry an address of the sandboxes.
                (when.ct_state("invalid"), do.drop()),
                # Nobody beyond the host begins a conversation with a sandbox.
                (when.ct_direction_reply(), do.drop()),
                # Judged already; once more, for another table may have changed the destination.
                (when.not_ipv4(), do.drop()),
                (when.ip_in("daddr", CLOSED), do.drop()),
                opened(),
                (do.accept(),),
            ),
        ),
        Chain(
            "postrouting",
            (
                (
                    when.ip_saddr(config.sandboxes),
                    when.oifname_not(_SANDBOX_INTERFACES),
                    when.oifname_not("lo"),
                    do.masquerade(),
                ),
            ),
            Hook.SNAT,
        ),
    )


def _gateway_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    """What this machine may send: a second barrier behind the gateway's own checks."""
    to_sandbox = when.oifname(_SANDBOX_INTERFACES)
    rules: list[Rule] = [
        (to_sandbox, when.not_ipv4(), do.drop()),
        (to_sandbox, *ends_soon()),
        (to_sandbox, do.accept()),
        # Clients on this machine; the first packet of others is seen as it comes in.
        (when.oifname("lo"), when.dport("tcp", config.https_port), *ends_soon()),
    ]
    if config.gateway_uid is None:
        return (Chain("output", tuple(rules), Hook.OUTPUT),)
    rules.append((when.skuid(config.gateway_uid), do.goto("gateway")))
    protocols = ("udp", "tcp")
    resolvers: list[IPv4Address | IPv4Network] = [*config.upstream_dns, _LOOPBACK]
    dns = [
        (when.ip_daddr(resolver), when.dport(protocol, _DNS), do.accept())
        for resolver in resolvers
        for protocol in protocols
    ]
    gateway = Chain(
        "gateway",
        (
            (when.ct_direction_reply(), when.ct_state("established"), do.accept()),
            (when.not_ipv4(), do.goto("refuse")),
            ends_soon(),
            *dns,
            (
                when.ip_daddr(config.ingress_address),
                when.dport("tcp", config.https_port),
                do.accept(),
            ),
            (when.ip_in("daddr", CLOSED), do.goto("refuse")),
            (when.fib_daddr_not_unicast(), do.goto("refuse")),
        ),
    )
    return (gateway, Chain("output", tuple(rules), Hook.OUTPUT))
