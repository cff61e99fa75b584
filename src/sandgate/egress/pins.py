"""Which addresses a sandbox was given for which names: what a port by name goes by. Pure.

A connection that does not show a name can still be one to a name: its address is what the gateway
answered when the sandbox asked for it. Nobody but the gateway's own resolution puts pins here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import IPv4Address

MIN_SECONDS = 60.0
"""How long a pin lasts at least, for programs that keep an address longer than they should."""

MAX_ADDRESSES = 1024
"""Most addresses of one sandbox; those pinned longest ago give way."""

MAX_NAMES = 32
"""Most names of one address."""


class Pins:
    """The pins of one sandbox. Times are seconds on any one clock."""

    __slots__ = ("_names",)

    def __init__(self) -> None:
        self._names: OrderedDict[IPv4Address, OrderedDict[str, float]] = OrderedDict()

    def add(self, name: str, addresses: Iterable[IPv4Address], ttl: float, now: float) -> None:
        """`name` was answered with `addresses`, to be kept for `ttl` seconds."""
        expires = now + max(ttl, MIN_SECONDS)
        for address in addresses:
            names = self._names.setdefault(address, OrderedDict())
            names[name] = max(expires, names.get(name, expires))
            names.move_to_end(name)
            self._names.move_to_end(address)
            if len(names) > MAX_NAMES:
                names.popitem(last=False)
        while len(self._names) > MAX_ADDRESSES:
            self._names.popitem(last=False)

    def names(self, address: IPv4Address, now: float) -> list[str]:
        """The names that `address` was answered for, the last one first."""
        names = self._names.get(address)
        if names is None:
            return []
        for name in [name for name, expires in names.items() if expires < now]:
            del names[name]
        if not names:
            del self._names[address]
        return list(reversed(names))
