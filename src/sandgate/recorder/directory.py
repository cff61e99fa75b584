"""Whose traffic it is: sandboxes by address. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from sandgate.egress.table import SandboxEntry

_FORMER = 4096
"""Sandboxes that are remembered after their end, for what is announced of them late."""


class Directory:
    """All sandboxes that the control process told of."""

    def __init__(self) -> None:
        self._present: dict[IPv4Address, SandboxEntry] = {}
        self._former: dict[IPv4Address, SandboxEntry] = {}

    def __len__(self) -> int:
        return len(self._present)

    def find(self, address: IPv4Address) -> SandboxEntry | None:
        """The sandbox that has `address`, or had it last."""
        return self._present.get(address) or self._former.get(address)

    def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or replace its policy."""
        self._former.pop(entry.address, None)
        self._present[entry.address] = entry

    def remove(self, address: IPv4Address) -> None:
        """A sandbox has ended."""
        entry = self._present.pop(address, None)
        if entry is not None:
            self._former[address] = entry
            if len(self._former) > _FORMER:
                del self._former[next(iter(self._former))]

    def retain(self, addresses: Iterable[IPv4Address]) -> None:
        """All others have ended."""
        for address in self._present.keys() - set(addresses):
            self.remove(address)
