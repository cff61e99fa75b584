"""What the gateway knows about sandboxes: by source address, their policy and live connections."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Protocol

from sandgate.egress.decision_log import LineBudget
from sandgate.egress.pins import Pins
from sandgate.egress.rate import RateBudget
from sandgate.policy import EgressPolicy
from sandgate.reasons import Reason


@dataclass(frozen=True, slots=True)
class SandboxEntry:
    """One sandbox as the control process describes it."""

    sandbox_id: str
    address: IPv4Address
    policy: EgressPolicy


class LiveConnection(Protocol):
    """A connection that a change of policy concerns."""

    def judge_again(self) -> None:
        """Reset the connection unless the sandbox's policy, as it is now, lets it pass."""

    def cut(self, outcome: Reason) -> None:
        """Reset the connection."""


@dataclass(slots=True, eq=False)
class Sandbox:
    """A sandbox that the gateway serves. `policy` is replaced when it changes."""

    sandbox_id: str
    address: IPv4Address
    policy: EgressPolicy
    connections: set[LiveConnection] = field(default_factory=set)
    pins: Pins = field(default_factory=Pins)
    dns_queries: int = 0
    """Queries being answered."""
    dns_connections: int = 0
    """Open DNS connections over TCP."""
    dns_rate: RateBudget = field(default_factory=RateBudget)
    lines: LineBudget = field(default_factory=LineBudget)
    removed: bool = False


class SandboxTable:
    """All sandboxes that the gateway was told about. Who is not in it gets nothing."""

    __slots__ = ("_sandboxes", "connections")

    def __init__(self) -> None:
        self._sandboxes: dict[str, Sandbox] = {}
        self.connections = 0
        """Proxied connections of all sandboxes."""

    def __len__(self) -> int:
        return len(self._sandboxes)

    def get(self, address: str) -> Sandbox | None:
        """The sandbox with this source address."""
        return self._sandboxes.get(address)

    def add_connection(self, sandbox: Sandbox, connection: LiveConnection) -> None:
        """Count a proxied connection."""
        sandbox.connections.add(connection)
        self.connections += 1

    def discard_connection(self, sandbox: Sandbox, connection: LiveConnection) -> None:
        """Forget a proxied connection."""
        if connection in sandbox.connections:
            sandbox.connections.remove(connection)
            self.connections -= 1

    def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or change its policy; live connections are judged before this returns.

        An address that now belongs to another sandbox takes nothing over from the one before.
        """
        key = str(entry.address)
        sandbox = self._sandboxes.get(key)
        if sandbox is not None and sandbox.sandbox_id != entry.sandbox_id:
            self.remove(entry.address)
            sandbox = None
        if sandbox is None:
            self._sandboxes[key] = Sandbox(entry.sandbox_id, entry.address, entry.policy)
            return
        if sandbox.policy != entry.policy:
            sandbox.policy = entry.policy
            for connection in list(sandbox.connections):
                connection.judge_again()

    def remove(self, address: IPv4Address) -> None:
        """Forget a sandbox and reset its connections. Unknown addresses are ignored."""
        sandbox = self._sandboxes.pop(str(address), None)
        if sandbox is not None:
            sandbox.removed = True
            for connection in list(sandbox.connections):
                connection.cut(Reason.SANDBOX_REMOVED)

    def retain(self, addresses: Iterable[IPv4Address]) -> None:
        """Forget every sandbox whose address is not among `addresses`."""
        kept = {str(address) for address in addresses}
        for key in [key for key in self._sandboxes if key not in kept]:
            self.remove(self._sandboxes[key].address)
