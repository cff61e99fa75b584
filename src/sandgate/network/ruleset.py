"""What the table holds of each sandbox, as data: its sets, and the rules of a policy. Pure.

The chains that use them are in `chains`; :class:`~sandgate.network.host.HostNetwork` sends both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sandgate.network import actions as do
from sandgate.network import matches as when
from sandgate.network.config import INTERFACE_PREFIX, NetworkConfig
from sandgate.network.limits import LIMIT_SETS
from sandgate.network.nftables import Chain, Element, Kind, NamedSet, RangeSet
from sandgate.network.ranges import ALL_ADDRESSES, Ranges, merged, reachable_ranges
from sandgate.network.refusals import TOLD
from sandgate.network.statements import show
from sandgate.policy import EgressPolicy

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

CUT = "cut"
"""Chain that ends connections whose answers are not admitted any more."""

_BOTH = (OUTGOING, INCOMING)
HTTPS = 443
"""The port that a name means at the ingress address."""


@dataclass(frozen=True, slots=True)
class SandboxRules:
    """What the table has for one sandbox, beside what it has for all."""

    reachable: Ranges = ()
    """What the sandbox reaches by address."""
    elements: tuple[Element, ...] = ()
    sets: tuple[str, ...] = ()
    """One holds `reachable`, a second one nothing; none where that is everything or nothing."""
    turn: int = 0
    """Which one."""
    chains: tuple[Chain, ...] = ()

    @property
    def ranges(self) -> RangeSet | None:
        """The set of `reachable`; None where that is everything or nothing."""
        return RangeSet(self.sets[self.turn], self.reachable) if self.sets else None


NO_RULES = SandboxRules()


def closed_set(config: NetworkConfig) -> RangeSet:
    """The always-denied ranges."""
    return RangeSet(CLOSED, merged(config.closed))


def sandbox_rules(
    config: NetworkConfig, slot: int, policy: EgressPolicy, before: SandboxRules = NO_RULES
) -> SandboxRules:
    """The rules of the sandbox in `slot`, which take the place of those that it had `before`.

    There is little of it on purpose: where a chain, a rule or a jump is new, the kernel follows all
    ways to all sandboxes, so what each has costs all others. Ranges that change for the first time
    get a second set and rules that look there, too. From then on one set is filled while the other
    is emptied, and nothing else is new; no set ever holds something of both. A packet that meets
    the change between two looks, and found the first set empty before it and the second one after
    it, finds in the first what it holds now.
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
        return SandboxRules(reachable, tuple(elements))
    if reachable == ALL_ADDRESSES:
        elements += [Element(verdicts, address, do.verdict_data("accept")) for verdicts in _BOTH]
        return SandboxRules(reachable, tuple(elements))
    first, second = (f"reach_{slot}_{number}" for number in range(2))
    sets, turn = before.sets or (first,), before.turn
    if before.sets and reachable != before.reachable:
        sets, turn = (first, second), 1 - turn
    looks = sets if len(sets) == 1 else (first, second, first)
    chains = (
        Chain(f"out_{slot}", tuple((when.ip_in("daddr", name), do.accept()) for name in looks)),
        # An answer, also an error from a router on the way, goes by what was asked.
        Chain(
            f"in_{slot}", tuple((when.ct_original_daddr_in(name), do.accept()) for name in looks)
        ),
    )
    for verdicts, chain in zip(_BOTH, chains, strict=True):
        elements.append(Element(verdicts, address, do.verdict_data("jump", chain.name)))
    return SandboxRules(reachable, tuple(elements), sets, turn, chains)


def show_chains(chains: Iterable[Chain]) -> str:
    """The chains in nft's language, for people."""
    lines = []
    for chain in chains:
        lines.append(f"chain {chain.name} {{")
        if (hook := chain.hook) is not None:
            lines.append(f"    type {hook.type} hook {hook.hook} priority {hook.priority};")
        lines += [f"    {show(rule)}" for rule in chain.rules]
        lines.append("}")
    return "\n".join(lines)
