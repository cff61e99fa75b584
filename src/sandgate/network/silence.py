"""Replacing the table without a reset of what both tables allow.

While a table is replaced, a packet on its way through the rules, of the old or of the new one, can
find a map empty that would let it pass. To refuse it would reset a connection that is allowed.
So the chains it comes to then, in both tables, drop for that moment: the packet is sent again.
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
_UNDER_WAY = 0.02
"""Seconds after which every packet is through that met the rules as they were before."""


def silent(fixed: Iterable[nftables.Chain]) -> list[nftables.Chain]:
    """The same chains, but silent ones where the maps know nothing."""
    return [
        dataclasses.replace(chain, rules=((do.drop(),),)) if chain.name in _AFTER_MAPS else chain
        for chain in fixed
    ]


def begin(netfilter: NetlinkSocket) -> None:
    """Make the table that is about to be replaced silent. Raises OSError."""
    try:
        _rewrite(netfilter, silent(nftables.Chain(name, ()) for name in _AFTER_MAPS))
    except NetlinkError as error:
        if error.errno != errno.ENOENT:  # another version's table, which has no such chains
            raise
    time.sleep(_UNDER_WAY)


def end(netfilter: NetlinkSocket, fixed: Iterable[nftables.Chain]) -> None:
    """Make the table that was created with :func:`silent` chains refuse. Raises OSError."""
    time.sleep(_UNDER_WAY)
    _rewrite(netfilter, [chain for chain in fixed if chain.name in _AFTER_MAPS])


def _rewrite(netfilter: NetlinkSocket, content: Sequence[nftables.Chain]) -> None:
    """Give chains that are there other rules, in one step."""
    parts: list[Message] = []
    for chain in content:
        parts += [_TABLE.flush_chain(chain.name), *_TABLE.add_rules(chain)]
    nftables.commit(netfilter, parts)
