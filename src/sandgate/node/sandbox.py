"""A sandbox that is alive, as the node holds it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from sandgate.egress.table import SandboxEntry
from sandgate.ingress.routes import Route
from sandgate.node.states import Event, State, advance
from sandgate.policy import EgressPolicy
from sandgate.store import NetworkConfig, SandboxRecord


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a user asked for. Already checked for shape, not for sense."""

    template: str
    timeout: int
    """Seconds to live."""
    network: NetworkConfig
    internet: bool | None
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    secure: bool
    """Shall envd ask for a token?"""


@dataclass(slots=True)
class LiveSandbox:
    """A record and where the sandbox is in its life. Changed by the node alone."""

    record: SandboxRecord
    policy: EgressPolicy
    """The policy that is to be enforced now."""
    state: State = State.CREATING
    address: IPv4Address | None = None
    """Known once it was launched."""
    reason: Event | None = None
    """Why it is being ended."""
    ending: asyncio.Task[None] | None = None
    policy_lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def sandbox_id(self) -> str:
        """Its name."""
        return self.record.sandbox_id

    def take(self, event: Event) -> None:
        """Move on. Raises :class:`sandgate.node.states.IllegalTransition`."""
        self.state = advance(self.state, event)

    def entry(self) -> SandboxEntry | None:
        """What the egress gateway must know; None while it has no address."""
        if self.address is None:
            return None
        return SandboxEntry(address=self.address, sandbox_id=self.sandbox_id, policy=self.policy)

    def route(self) -> Route | None:
        """What the ingress must know; None while it has no address."""
        if self.address is None:
            return None
        return Route(
            sandbox_id=self.sandbox_id,
            address=self.address,
            traffic_token=self.record.traffic_token,
            mask_host=self.record.network.mask_request_host,
        )
