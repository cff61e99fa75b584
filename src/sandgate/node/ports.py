"""What the node needs of the processes that do the work: the launcher and both gates.

The gates' clients reconnect by themselves, and on every connection ask the node for all there
should be (:meth:`sandgate.node.node.Node.entries` and `routes`). Hence a call to a gate that
failed needs no repetition by the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from typing import Any, Protocol

from sandgate.egress.client import EgressRefused, EgressUnavailable
from sandgate.egress.table import SandboxEntry
from sandgate.envd.config import EnvdConfig
from sandgate.ingress.client import IngressError
from sandgate.ingress.routes import Route
from sandgate.node.admission import Readings
from sandgate.policy import EgressPolicy
from sandgate.runtime.protocol import Launched, SandboxSpec, Usage

GATE_ERRORS = (EgressUnavailable, EgressRefused, IngressError)
"""What the calls of the gates raise."""


class Launcher(Protocol):
    """Starts and ends sandboxes, and holds the kernel's part of their policy.

    Every call may raise :class:`sandgate.runtime.client.LauncherError`.
    """

    @property
    def connected(self) -> bool:
        """Is the launcher there right now?"""

    async def start(self) -> None:
        """Connect."""

    async def create(
        self,
        spec: SandboxSpec,
        config: EnvdConfig,
        on_address: Callable[[IPv4Address], None] | None = None,
    ) -> Launched:
        """Start a sandbox; returns when its envd accepts connections.

        `on_address` may be told its address before that.
        """

    async def kill(self, sandbox_id: str) -> None:
        """End a sandbox, if there is one; returns when nothing of it is left."""

    async def set_policy(self, sandbox_id: str, policy: EgressPolicy) -> None:
        """Replace the kernel's rules; returns when they are in force."""

    async def pause(self, sandbox_id: str) -> None:
        """Stop a sandbox's processes where they stand, and cut its callers off. Repeatable."""

    async def resume(self, sandbox_id: str) -> None:
        """Let a paused sandbox's processes go on. Repeatable."""

    async def park(self, sandbox_id: str) -> None:
        """End a sandbox's processes and keep its disk. Repeatable."""

    async def snapshot(self, sandbox_id: str, snapshot_id: str) -> None:
        """Copy a sandbox's disk, which stands still meanwhile."""

    async def clone(self, snapshot_id: str, sandbox_id: str) -> None:
        """Keep a copy of a snapshot as the disk of a sandbox to come."""

    async def drop_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot, if it exists."""

    async def images(self) -> tuple[set[str], set[str]]:
        """The sandboxes that have a disk and no processes, and the snapshots."""

    async def usage(self, sandbox_ids: Sequence[str]) -> dict[str, Usage]:
        """What sandboxes use, without those that are gone."""

    async def running(self) -> list[Launched]:
        """All sandboxes that have processes, paused ones included."""

    async def close(self) -> None:
        """Disconnect; sandboxes stay."""


class Gauge(Protocol):
    """The machine's resources."""

    def read(self, sandboxes: int) -> Readings:
        """What is left now; `sandboxes` is how many there are."""


class EgressGate(Protocol):
    """The gateway's table of sandboxes. A sandbox that is not in it reaches nothing by name."""

    @property
    def connected(self) -> bool:
        """Is the gateway there right now?"""

    async def start(self) -> None:
        """Connect, and stay connected."""

    async def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or replace its policy; returns when it is in force."""

    async def remove(self, address: IPv4Address) -> None:
        """Forget the sandbox at `address`, and end what it has open."""

    async def explain(self, policy: EgressPolicy, target: str) -> dict[str, Any]:
        """What would become of a connection to `target` under this policy."""

    async def close(self) -> None:
        """Disconnect."""


class IngressGate(Protocol):
    """The routes from public names to sandboxes."""

    @property
    def connected(self) -> bool:
        """Is the proxy there right now?"""

    async def start(self) -> None:
        """Connect, and stay connected."""

    async def add(self, route: Route) -> None:
        """Make a sandbox reachable; returns when it is."""

    async def remove(self, sandbox_id: str) -> None:
        """Take a sandbox's route away, and end the connections to it."""

    async def close(self) -> None:
        """Disconnect."""
