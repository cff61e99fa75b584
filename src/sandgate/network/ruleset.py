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
from sandgate.network.limits import LIMIT_SETS, asked, limiting_chains, opened
from sandgate.network.nftables import Chain, Element, Hook, Kind, NamedSet, Ranges, RangeSet
from sandgate.network.refusals import TOLD, refusal, refusing_chains, silent_refusal
from sandgate.policy import RESOLVER, EgressPolicy, Mode, NetworkSet
from sandgate.reasons import Reason

TABLE = "sandgate"
"""Name of the table, on the host and in the sandboxes' namespaces."""

GATEWAY_MARK = 0x53470001
"""Mark of packets for a transparent socket; a routing rule delivers them to this machine."""

LINKS = NamedSet("links", Kind.LINKS)
"""Interface and address of each sandbox that has a policy."""
RESOLVING = NamedSet("resolving", Kind.PAIRS)
"""Sandboxes, and the resolvers where the gateway answers them."""
NAMED = NamedSet("named", Kind.PORTS_OF)
"""Sandboxes, and the TCP ports that the gateway decides on, by names."""
BY_NAME = NamedSet("by_name", Kind.ADDRESSES)
"""Sandboxes for which the gateway decides on the ingress address, by names."""
INGRESS = NamedSet("ingress", Kind.ADDRESSES)
"""Sandboxes whose policy, by address alone, admits the ingress address."""
OUTGOING = NamedSet("outgoing", Kind.VERDICTS)
"""Accepts what a sandbox reaches by address."""
INCOMING = NamedSet("incoming", Kind.VERDICTS)
"""Accepts answers to it."""
CLOSED = "closed"
"""The always-denied ranges."""

SETS = (
    *(LINKS, RESOLVING, NAMED, BY_NAME, INGRESS, OUTGOING, INCOMING),
    *TOLD.values(),
    *LIMIT_SETS,
)

_BOTH = (OUTGOING, INCOMING)
_ALL_ADDRESSES: Ranges = ((0, 0xFFFFFFFF),)
_SANDBOX_INTERFACES = f"{INTERFACE_PREFIX}*"
_LOOPBACK = IPv4Network("127.0.0.0/8")
_DNS = 53
HTTPS = 443
"""The port that a name means at the ingress address."""


@dataclass(frozen=True, slots=True)
class SandboxRules:
    """What the table has for one sandbox, beside what it has for all."""

    reachable: Ranges
    """What the sandbox reaches by address."""
    elements: tuple[Element, ...]
    ranges: RangeSet | None
    """The set of `reachable`; None where that is everything or nothing."""
    chains: tuple[Chain, ...]


def closed_set(config: NetworkConfig) -> RangeSet:
    """The always-denied ranges."""
    return RangeSet(CLOSED, merged(config.closed))


def base_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    """The part of the table that is there without any sandbox."""
    return (
        *refusing_chains(),
        *limiting_chains(config.limits, _SANDBOX_INTERFACES, RESOLVER),
        *_shared_chains(config),
        *_hooked_chains(config),
        *_gateway_chains(config),
    )


def sandbox_rules(
    config: NetworkConfig, slot: int, policy: EgressPolicy, generation: int
) -> SandboxRules:
    """The rules of the sandbox in `slot`.

    Each `generation` has chains and a set of its own, so that a replacement never mixes with what
    it replaces. There is little of it on purpose: at every change the kernel checks the whole
    table again, so what each sandbox has costs all others.
    """
    address = config.address(slot).packed
    interface = f"{INTERFACE_PREFIX}{slot}".encode().ljust(16, b"\0")
    elements = [Element(LINKS, interface + address)]
    elements += [Element(RESOLVING, address + server.packed) for server in policy.resolvers]
    ports = policy.gateway_ports
    elements += [Element(NAMED, address + port.to_bytes(2) + bytes(2)) for port in sorted(ports)]
    if ports & {HTTPS, config.https_port}:
        elements.append(Element(BY_NAME, address))
    if policy.decide(config.ingress_address).allowed:
        elements.append(Element(INGRESS, address))
    reachable = reachable_ranges(policy)
    if not reachable:
        return SandboxRules(reachable, tuple(elements), None, ())
    if reachable == _ALL_ADDRESSES:
        elements += [Element(verdicts, address, s.verdict_data("accept")) for verdicts in _BOTH]
        return SandboxRules(reachable, tuple(elements), None, ())
    ranges = RangeSet(f"reach_{slot}_{generation}", reachable)
    chains = (
        Chain(f"out_{slot}_{generation}", ((s.ip_in("daddr", ranges.name), s.accept()),)),
        # An answer, also an error from a router on the way, goes by what was asked.
        Chain(f"in_{slot}_{generation}", ((s.ct_original_daddr_in(ranges.name), s.accept()),)),
    )
    for verdicts, chain in zip(_BOTH, chains, strict=True):
        elements.append(Element(verdicts, address, s.verdict_data("jump", chain.name)))
    return SandboxRules(reachable, tuple(elements), ranges, chains)


def reachable_ranges(policy: EgressPolicy) -> Ranges:
    """All addresses that pass by address: allowed, or not denied, or all if it only reports."""
    if policy.mode is Mode.REPORT:
        return _ALL_ADDRESSES
    gaps = []
    start = 0
    for first, last in merged(policy.deny):
        if first > start:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= 0xFFFFFFFF:
        gaps.append((start, 0xFFFFFFFF))
    return _joined(sorted([*gaps, *merged(policy.allow)]))


def merged(networks: NetworkSet) -> Ranges:
    """The networks as ranges; those that touch are one."""
    return _joined(networks.ranges)


def covers(wide: Ranges, narrow: Ranges) -> bool:
    """Is all of `narrow` a part of `wide`? Both ascending, and nothing in them touches."""
    candidates = iter(wide)
    current = next(candidates, None)
    for first, last in narrow:
        while current is not None and current[1] < last:
            current = next(candidates, None)
        if current is None or current[0] > first:
            return False
    return True


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ascending ranges, with those that overlap or touch made one."""
    result: list[tuple[int, int]] = []
    for first, last in ranges:
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)


def namespace_chains() -> tuple[Chain, ...]:
    """For the sandbox's own namespace: servers bound to 127.0.0.1 are reached from the host too.

    A connection that a socket waits for at the address it came to (or at any address) is left
    alone; another goes to the loopback, where it finds its server or is reset. Only connections
    from the host are tracked, so that a sandbox cannot fill the kernel's memory with others.
    """
    from_host = (s.iifname("eth0"), s.ip_saddr(HOST_ADDRESS), s.l4proto("tcp"))
    to_host = (s.ip_daddr(HOST_ADDRESS), s.l4proto("tcp"))
    return (
        Chain("untracked_in", ((*from_host, s.accept()), (s.notrack(),)), Hook.RAW_PREROUTING),
        Chain("untracked_out", ((*to_host, s.accept()), (s.notrack(),)), Hook.RAW_OUTPUT),
        Chain(
            "prerouting",
            (
                (*from_host, s.socket_transparent(0), s.accept()),
                (*from_host, s.dnat_ipv4(IPv4Address("127.0.0.1"))),
            ),
            Hook.DNAT,
        ),
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


def _shared_chains(config: NetworkConfig) -> tuple[Chain, ...]:
    established_transparent = (
        s.socket_transparent(1),
        s.mark_set(GATEWAY_MARK),
        s.accept(),
    )
    ingress_port = s.dport("tcp", config.https_port)
    return (
        # An answer that the policy no longer admits: the far side is told, the sandbox is as soon
        # as it sends.
        Chain("cut", ((s.l4proto("tcp"), s.reject_with_tcp_reset()), (s.drop(),))),
        Chain(
            "settled",
            (
                (s.ip_hdrlength_above(5), s.goto(refusal(Reason.IP_OPTIONS))),
                # Answers to the host itself and to nobody else: should the kernel have forgotten a
                # sandbox's query, the gateway's answer to it looks like the host's beginning.
                (
                    s.ip_daddr(HOST_ADDRESS),
                    s.ct_direction_reply(),
                    s.ct_state("established"),
                    s.accept(),
                ),
                # What the gateway has stays with it, which judges it again. A listener would match
                # too, but its packets are not of an established connection that ends here.
                (
                    s.l4proto("tcp"),
                    s.ct_state("established"),
                    s.ct_source_not_translated(),
                    *established_transparent,
                ),
            ),
        ),
        Chain(
            "never",
            (
                (s.ip_in("daddr", CLOSED), s.goto(refusal(Reason.ALWAYS_DENIED))),
                (s.fib_daddr_not_unicast(), s.goto(refusal(Reason.ALWAYS_DENIED))),
            ),
        ),
        Chain(
            "resolver",
            (
                (s.saddr_daddr_in(RESOLVING.name), *asked(config.limits)),
                *(
                    (
                        s.saddr_daddr_in(RESOLVING.name),
                        s.l4proto(protocol),
                        s.tproxy(config.gateway_address, _DNS),
                        s.mark_set(GATEWAY_MARK),
                        s.accept(),
                    )
                    for protocol in ("udp", "tcp")
                ),
                (s.saddr_daddr_in(RESOLVING.name), s.goto(refusal(Reason.GATEWAY_DOWN))),
                (s.goto(refusal(Reason.NO_RESOLVER)),),
            ),
        ),
        Chain(
            "gateway_tcp",
            (
                (
                    s.l4proto("tcp"),
                    s.tproxy(config.gateway_address, config.gateway_port),
                    s.mark_set(GATEWAY_MARK),
                    s.accept(),
                ),
                (s.goto(refusal(Reason.GATEWAY_DOWN)),),
            ),
        ),
        Chain(
            "ingress_address",
            (
                (
                    ingress_port,
                    s.ct_state("established"),
                    s.ip_in("saddr", INGRESS.name),
                    s.accept(),
                ),
                (ingress_port, s.ip_in("saddr", BY_NAME.name), s.goto("gateway_tcp")),
                (ingress_port, s.ip_in("saddr", INGRESS.name), s.accept()),
                (ingress_port, s.goto(refusal(Reason.DENIED_ADDRESS))),
                (s.goto(refusal(Reason.ALWAYS_DENIED)),),
            ),
        ),
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
                (s.not_ipv4(), s.goto(silent_refusal(Reason.IPV6))),
                (s.unknown_link(LINKS.name), s.goto(silent_refusal(Reason.SPOOFED_SOURCE))),
                (s.ct_mark_set_saddr(),),
                (s.jump("settled"),),
                *(
                    (s.ip_daddr(RESOLVER), s.dport(protocol, _DNS), s.goto("resolver"))
                    for protocol in ("udp", "tcp")
                ),
                (s.ip_daddr(config.ingress_address), s.goto("ingress_address")),
                (s.jump("never"),),
                (s.jump("to_gateway"),),
                # The only way there: at every change the kernel follows all ways to all sandboxes.
                (s.goto("by_address"),),
            ),
            Hook.PREROUTING,
        ),
        Chain(
            "to_gateway",
            (
                # What was forwarded once is not the gateway's: it goes by address to its end.
                (s.ct_state("established"), s.ct_source_translated(), s.back()),
                *(
                    (s.dport(protocol, _DNS), s.saddr_daddr_in(RESOLVING.name), s.goto("resolver"))
                    for protocol in ("udp", "tcp")
                ),
                (s.saddr_dport_in(NAMED.name), s.goto("gateway_tcp")),
            ),
        ),
        Chain(
            "by_address",
            ((s.address_vmap("saddr", OUTGOING.name),), (s.goto(refusal(Reason.DENIED_ADDRESS)),)),
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
                opened(),
                (s.mark(GATEWAY_MARK), s.accept()),
                (*reply, s.accept()),
                (
                    s.ip_daddr(config.ingress_address),
                    s.dport("tcp", config.https_port),
                    s.accept(),
                ),
                (s.goto(refusal(Reason.ALWAYS_DENIED)),),
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
                    s.address_vmap("daddr", INCOMING.name),
                ),
                (s.ct_direction_reply(), s.ct_state("established"), s.goto("cut")),
                (s.drop(),),
            ),
        ),
        Chain(
            "forward_from_sandbox",
            (
                # Meant for a socket of this machine; it found none, and must not go on as it is.
                (s.mark(GATEWAY_MARK), s.drop()),
                # Not tracked means not translated: it would carry an address of the sandboxes.
                (s.ct_state("invalid"), s.drop()),
                # Nobody beyond the host begins a conversation with a sandbox.
                (s.ct_direction_reply(), s.drop()),
                # Judged already; once more, for another table may have changed the destination.
                (s.not_ipv4(), s.drop()),
                (s.ip_in("daddr", CLOSED), s.drop()),
                opened(),
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
            (s.ip_in("daddr", CLOSED), s.goto("refuse")),
            (s.fib_daddr_not_unicast(), s.goto("refuse")),
        ),
    )
    return (gateway, Chain("output", tuple(rules), Hook.OUTPUT))
