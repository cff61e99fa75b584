"""A sandbox that is alive, as the node holds it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from sandgate.accounts import Caller
from sandgate.egress.table import SandboxEntry
from sandgate.ingress.routes import Route, parse_https_ports
from sandgate.node.journal import Journal, Level
from sandgate.node.metrics import Meter
from sandgate.node.states import Event, State, advance
from sandgate.policy import EgressPolicy
from sandgate.store import NetworkConfig, SandboxRecord

_TOLD = {
    Event.STARTED: ("Sandbox started", Level.INFO),
    Event.UNDONE: ("Sandbox could not be paused or resumed, and is as it was", Level.ERROR),
    Event.SAVED: ("Snapshot ended", Level.INFO),
}
"""What the journal says of events; who pauses and resumes says more of that."""


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a user asked for. Already checked for shape, not for sense."""

    caller: Caller
    """Whose it will be."""
    template: str
    timeout: int
    """Seconds to live."""
    network: NetworkConfig
    internet: bool | None
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    secure: bool
    """Shall envd ask for a token?"""
    auto_pause: bool = False
    """Pause it when its time is over, instead of ending it?"""
    auto_pause_memory: bool = True
    """Shall such a pause keep memory and processes?"""
    auto_resume: bool = False
    """Shall a request to one of its ports resume it?"""


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
    image: str | None = None
    """The snapshot whose copy it starts on, until it has started."""
    change: asyncio.Task[None] | None = None
    """The last pause, resumption or snapshot; under way unless done."""
    policy_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    journal: Journal = field(default_factory=Journal)
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.record.cpu_count)

    @property
    def sandbox_id(self) -> str:
        """Its name."""
        return self.record.sandbox_id

    def take(self, event: Event) -> None:
        """Move on. Raises :class:`sandgate.node.states.IllegalTransition`."""
        self.state = advance(self.state, event)
        if event in _TOLD:
            message, level = _TOLD[event]
            self.journal.add(message, level)

    def keep_network(self, record: SandboxRecord) -> None:
        """Its network settings are those of `record` from now on."""
        self.record = replace(self.record, network=record.network, internet=record.internet)
        self.note_network()

    def note_network(self) -> None:
        """Put into the journal which network settings are in force from now on."""
        network = self.record.network
        self.journal.add(
            "Network policy in force",
            allow_out=None if network.allow_out is None else " ".join(network.allow_out),
            deny_out=None if network.deny_out is None else " ".join(network.deny_out),
            allow_internet_access=self.record.internet,
            dns_servers=None if network.dns_servers is None else " ".join(network.dns_servers),
            mode=network.mode,
        )

    async def settle(self) -> None:
        """Wait until no change is under way."""
        while self.change is not None and not self.change.done():
            await asyncio.wait({self.change})

    def entry(self) -> SandboxEntry | None:
        """What the egress gateway must know; None while it has no address."""
        if self.address is None:
            return None
        return SandboxEntry(address=self.address, sandbox_id=self.sandbox_id, policy=self.policy)

    def route(self) -> Route | None:
        """What the ingress must know; None if the sandbox is not to be found."""
        address = self.address
        if self.state in (State.PAUSING, State.PAUSED, State.RESUMING):
            if not self.record.lifecycle.auto_resume:
                return None
            address = None
        elif address is None:
            return None
        return Route(
            sandbox_id=self.sandbox_id,
            address=address,
            traffic_token=self.record.traffic_token,
            mask_host=self.record.network.mask_request_host,
            https_ports=parse_https_ports(self.record.network.https_ports or ()),
        )
