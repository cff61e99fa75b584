"""What the kernel lets one sandbox open, as rules. Pure.

A connection is counted when its first packet was admitted and not yet entered in the connection
tracking table, so what is refused never takes room in that table. The sets get their elements
from packets alone: creating and ending a sandbox costs nothing more, and the kernel (seen with
6.18) loses its hold on connection tracking when elements that count are deleted which were added
over netlink.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address

from sandgate.limits import BURST_SECONDS, TrafficLimits
from sandgate.network import actions as do
from sandgate.network import matches as when
from sandgate.network.nftables import MOST_INTERFACES, Chain, Hook, Kind, NamedSet, TcpTimeouts
from sandgate.network.refusals import refusal
from sandgate.network.shares import Share
from sandgate.network.statements import Rule
from sandgate.reasons import Reason

OPENING = NamedSet("opening", Kind.METER)
"""How fast each sandbox opens connections."""
ASKING = NamedSet("asking", Kind.METER)
"""How fast each sandbox asks the resolver, over UDP."""
LIMIT_SETS = (OPENING, ASKING)

SHORT_LIVED = TcpTimeouts(
    "short_lived", {"SYN_SENT": 30, "SYN_RECV": 30, "LAST_ACK": 10, "TIME_WAIT": 5, "CLOSE": 5}
)
"""For connections of sandboxes that are not open yet or no longer: minutes of them, which is the
kernel's default, would fill its table at a modest rate."""

_OPENED = "opened"
_SHARE = "share_{}"
"""Chain, and set of counts, of a share."""
_DNS = 53


def opened() -> Rule:
    """Where a chain has admitted what a sandbox opens: lets it be counted, or refuses it."""
    return (when.ct_state("new"), when.ct_unconfirmed(), do.jump(_OPENED))


def asked(limits: TrafficLimits) -> Rule:
    """Refuses queries to the resolver that come too fast."""
    rate = limits.dns_queries
    return (
        when.l4proto("udp"),
        when.above_rate_of_interface(ASKING.name, rate, rate * BURST_SECONDS),
        do.goto(refusal(Reason.LIMIT_DNS_RATE)),
    )


def ends_soon() -> Rule:
    """Gives a TCP connection, whose first packet this is, short timeouts."""
    return (
        when.l4proto("tcp"),
        when.ct_state("new"),
        when.ct_unconfirmed(),
        do.ct_timeout_set(SHORT_LIVED.name),
    )


def counts(shares: Sequence[Share]) -> tuple[NamedSet, ...]:
    """The sets that keep the connections of each sandbox: by share, those beyond the ones before.

    Each holds as many sandboxes as there are places. Who has none left open in it gives his back.
    """
    return tuple(
        NamedSet(_SHARE.format(number), Kind.COUNTS, share.places or MOST_INTERFACES)
        for number, share in enumerate(shares)
    )


def _sharing_chains(shares: Sequence[Share]) -> Iterator[Chain]:
    """A chain for each share: comes to its end with what the share has room for."""
    for number, share in enumerate(shares):
        name = _SHARE.format(number)
        last = number == len(shares) - 1
        beyond = refusal(Reason.LIMIT_CONNECTIONS) if last else _SHARE.format(number + 1)
        rules: list[Rule] = [
            (when.above_count_of_interface(name, share.connections), do.goto(beyond))
        ]
        if share.places is not None:
            no_place = refusal(Reason.LIMIT_NODE_CONNECTIONS) if last else beyond
            rules.append((when.unknown_interface(name), do.goto(no_place)))
        yield Chain(name, tuple(rules))


def limiting_chains(
    limits: TrafficLimits, shares: Sequence[Share], interfaces: str, resolver: IPv4Address
) -> tuple[Chain, ...]:
    """What :func:`opened` leads to; and queries to the resolver are not tracked.

    The gateway answers those whatever the policy, so that there is nothing to translate, and each
    would stay in the table for half a minute.
    """
    rate = limits.new_connections
    query = (
        when.iifname(interfaces),
        when.ip_daddr(resolver),
        when.dport("udp", _DNS),
        do.notrack(),
    )
    answer = (
        when.oifname(interfaces),
        when.ip_saddr(resolver),
        when.sport("udp", _DNS),
        do.notrack(),
    )
    return (
        Chain(
            _OPENED,
            (
                (
                    when.above_rate_of_interface(OPENING.name, rate, rate * BURST_SECONDS),
                    do.goto(refusal(Reason.LIMIT_CONNECTION_RATE)),
                ),
                (when.l4proto("tcp"), do.ct_timeout_set(SHORT_LIVED.name)),
                (do.goto(_SHARE.format(0)),),
            ),
        ),
        *_sharing_chains(shares),
        Chain("queries", (query,), Hook.RAW_PREROUTING),
        Chain("answers", (answer,), Hook.RAW_OUTPUT),
    )
