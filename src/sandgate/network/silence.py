"""Replacing the table without a moment that is open, or a reset of what both tables allow.

While a table is replaced, a packet on its way through the old one can find a map empty that would
let it pass; and what is in the new one's sets of ranges the kernel shows a moment later than the
rules that look there: the always-denied ranges would be open, and what is allowed would be reset.
So the chains it comes to then drop for that moment: the packet is sent again.
"""

from __future__ import annotations

import dataclasses
import errno
import time
from collections.abc import Iterable, Sequence

from sandgate.network import actions as do
from sandgate.network import nftables, ruleset
from sandgate.network.netlink import Message, NetlinkError, NetlinkSocket
from sandgate.network.refusals import refusal
from sandgate.reasons import Reason

_TABLE = nftables.Table(ruleset.TABLE)
_AFTER_MAPS = (refusal(Reason.DENIED_ADDRESS), ruleset.CUT)
"""Chains that a packet comes to which the maps of sandboxes do not know."""
_LOOK_IN_RANGES = frozenset({"never", "forward_to_sandbox", "forward_from_sandbox", "gateway"})
"""Chains that look in sets of ranges, or without which no other comes to do so."""
_UNDER_WAY = 0.02
"""Seconds after which every packet is through that met the rules as they were before."""


def silent(fixed: Iterable[nftables.Chain]) -> list[nftables.Chain]:
    """The same chains, but those drop everything that depend on sets of ranges."""
    return [_dropping(chain) if chain.name in _LOOK_IN_RANGES else chain for chain in fixed]


def _dropping(chain: nftables.Chain) -> nftables.Chain:
    return dataclasses.replace(chain, rules=((do.drop(),),))


def begin(netfilter: NetlinkSocket) -> None:
    """Make the table that is about to be replaced silent. Raises OSError."""
    try:
        _rewrite(netfilter, [_dropping(nftables.Chain(name, ())) for name in _AFTER_MAPS])
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # another version's table, which has no such chains
            raise
    time.sleep(_UNDER_WAY)


def end(netfilter: NetlinkSocket, fixed: Iterable[nftables.Chain]) -> None:
    """Let the table that was created with :func:`silent` chains decide. Raises OSError."""
    _rewrite(netfilter, [chain for chain in fixed if chain.name in _LOOK_IN_RANGES])


def _rewrite(netfilter: NetlinkSocket, content: Sequence[nftables.Chain]) -> None:
    """Give chains that are there other rules, in one step."""
    parts: list[Message] = []
    for chain in content:
        parts += [_TABLE.flush_chain(chain.name), *_TABLE.add_rules(chain)]
    nftables.commit(netfilter, parts)
