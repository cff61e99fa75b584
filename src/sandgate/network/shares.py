"""How the kernel's table of connections is shared out among the sandboxes of a node. Pure.

Half of it is for what sandboxes have open. The other half is for what the gateway opens in their
stead, for visitors, for the machine, and for connections that were closed a moment ago.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt


@dataclass(frozen=True, slots=True)
class Share:
    """Connections that a sandbox may have open beyond those of the share before."""

    connections: int
    places: int | None = None
    """How many sandboxes have it at the same time, first come, first served. None: all."""


def share_out(table: int, sandboxes: int, connections: int) -> tuple[Share, ...]:
    """What `sandboxes`, each of at most `connections`, get of a `table` with so many entries.

    Where half of it is not enough for all to have their most, a third of that half is divided
    evenly, and is each sandbox's whatever the others do. The other two are for those who want
    more: many who want some more, and a few who want all they may have. Beyond, what comes is
    refused, before it takes an entry.
    """
    half = table // 2
    if sandboxes * connections <= half:
        return (Share(connections),)
    third = half // 3
    everyone = max(third // sandboxes, 1)
    many = max(isqrt(everyone * connections), everyone + 1)
    return (Share(everyone), _places(many - everyone, third), _places(connections - many, third))


def _places(connections: int, entries: int) -> Share:
    each = max(min(connections, entries), 1)
    return Share(each, max(entries // each, 1))
