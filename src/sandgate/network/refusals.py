"""How the kernel refuses packets of sandboxes, and how it tells of that: as rules. Pure.

Who listens to the log :data:`REFUSALS_GROUP` gets the reason and the head of each refused packet,
at a bounded rate for each sandbox and reason, so that no flood hides what else is refused; what is
beyond it is counted by :data:`TOLD`.
"""

from __future__ import annotations

from sandgate.network import actions as do
from sandgate.network import matches as when
from sandgate.network.nftables import Chain, Kind, NamedSet
from sandgate.network.statements import Statement
from sandgate.reasons import Reason

_ANSWERED = (
    Reason.ALWAYS_DENIED,
    Reason.DENIED_ADDRESS,
    Reason.IP_OPTIONS,
    Reason.NO_RESOLVER,
    Reason.GATEWAY_DOWN,
    Reason.LIMIT_CONNECTIONS,
    Reason.LIMIT_NODE_CONNECTIONS,
    Reason.LIMIT_CONNECTION_RATE,
    Reason.LIMIT_DNS_RATE,
)
_SILENT = (Reason.IPV6, Reason.SPOOFED_SOURCE)

TOLD = {reason: NamedSet(f"told_{reason}", Kind.METER) for reason in (*_ANSWERED, *_SILENT)}
"""By reason: how much of what is refused was told of each sandbox, and how much was not."""

REFUSALS_GROUP = 0x5347
"""Number of the log (nfnetlink_log) that is told of refusals, with the reason as the prefix."""

_TOLD_PER_SECOND, _TOLD_AT_ONCE = 20, 40
"""Refusals of one sandbox, for one reason, that are told; more are only counted."""
TOLD_BYTES = 80
"""Bytes of a refused packet that are told: the longest IPv4 header, and ports."""


def refusal(reason: Reason) -> str:
    """Name of the chain that refuses for this reason, tells of it and answers the sandbox."""
    return f"refuse_{reason}"


def silent_refusal(reason: Reason) -> str:
    """The same, without an answer to the sandbox."""
    return f"drop_{reason}"


def refusing_chains() -> tuple[Chain, ...]:
    """What the others lead to where a packet is refused."""

    def telling(name: str, reason: Reason, end: Statement) -> Chain:
        limited = when.above_rate_of_interface(TOLD[reason].name, _TOLD_PER_SECOND, _TOLD_AT_ONCE)
        told = do.log(reason, REFUSALS_GROUP, TOLD_BYTES)
        return Chain(name, ((limited, end), (told, end)))

    return (
        Chain(
            "refuse",
            (
                (when.l4proto("tcp"), do.reject_with_tcp_reset()),
                (do.reject_as_prohibited(),),
            ),
        ),
        *(telling(refusal(reason), reason, do.goto("refuse")) for reason in _ANSWERED),
        *(telling(silent_refusal(reason), reason, do.drop()) for reason in _SILENT),
    )
