"""What the node's table still has of sandboxes that are gone: found, and taken away."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sandgate.network import listing, nftables, ruleset
from sandgate.network.config import FIRST_SANDBOX, INTERFACE_PREFIX, NetworkConfig
from sandgate.network.netlink import Message, NetlinkSocket

_TABLE = nftables.Table(ruleset.TABLE)
_BY_ADDRESS = (
    ruleset.RESOLVING,
    ruleset.BY_NAME,
    ruleset.INGRESS,
    ruleset.OUTGOING,
    ruleset.INCOMING,
)
_CHAIN = re.compile(r"(?:out|in)_(\d+)")
_RANGES = re.compile(r"reach_(\d+)_\d+")


def slots_with_rules(socket: NetlinkSocket, config: NetworkConfig) -> set[int]:
    """The slots that the table has anything of. Raises NetlinkError."""
    found = {int(match[1]) for name in _names(socket) if (match := _CHAIN.fullmatch(name))}
    for _, slot in _elements(socket, config):
        found.add(slot)
    return found


def purge(socket: NetlinkSocket, config: NetworkConfig, slot: int) -> None:
    """Take away all that the table has of `slot`, at once. Raises NetlinkError."""
    messages: list[Message] = []
    for element, owner in _elements(socket, config):
        if owner == slot:
            messages += _TABLE.delete_element(element)
    names = _names(socket)
    for pattern, delete in ((_CHAIN, _TABLE.delete_chain), (_RANGES, _TABLE.delete_set)):
        messages += [
            delete(name)
            for name in names
            if (match := pattern.fullmatch(name)) is not None and int(match[1]) == slot
        ]
    if messages:
        nftables.commit(socket, messages)


def _names(socket: NetlinkSocket) -> list[str]:
    return listing.list_names(socket, ruleset.TABLE)


def _elements(
    socket: NetlinkSocket, config: NetworkConfig
) -> Iterator[tuple[nftables.Element, int]]:
    """The elements that are there for one sandbox, with its slot."""
    first = int(config.sandboxes.network_address) + FIRST_SANDBOX
    for key in listing.list_keys(socket, ruleset.TABLE, ruleset.LINKS.name):
        name = key[:16].rstrip(b"\0").decode(errors="replace")
        if name.removeprefix(INTERFACE_PREFIX).isdigit():
            yield nftables.Element(ruleset.LINKS, key), int(name.removeprefix(INTERFACE_PREFIX))
    for named in _BY_ADDRESS:
        for key in listing.list_keys(socket, ruleset.TABLE, named.name):
            slot = int.from_bytes(key) - first
            if 0 <= slot < config.slots:
                yield nftables.Element(named, key), slot
