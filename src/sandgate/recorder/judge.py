"""Turns what the kernel announces into decisions, with the reason and the rule. Pure.

The kernel has decided; the same policy that its rules were made from is asked for the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.decisions.tally import Subject
from sandgate.egress.table import SandboxEntry
from sandgate.network.flows import Flow
from sandgate.network.nflog import LoggedPacket
from sandgate.network.ruleset import HTTPS
from sandgate.policy import NetworkSet
from sandgate.reasons import Reason

MAX_FLOWS = 65_536
"""Flows under way whose decision is remembered; of others it is made again at their end."""

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
_NOT_IPV4 = "::"
"""Destination where there is no IPv4 address."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is the same for all sandboxes."""

    closed: NetworkSet
    """What no policy opens."""
    ingress: tuple[IPv4Address, int]
    """Where sandboxes reach sandbox URLs."""


class Judge:
    """Judges packets and flows of sandboxes."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._flows: dict[int, Subject] = {}

    @property
    def flows(self) -> int:
        """How many forwarded flows are under way, up to :data:`MAX_FLOWS`."""
        return len(self._flows)

    def refused(self, packet: LoggedPacket, sandbox: SandboxEntry) -> Subject | None:
        """What was refused; None for a packet that was logged for no known reason."""
        try:
            reason = Reason(packet.prefix)
        except ValueError:
            return None
        destination, rule = packet.destination, None
        if destination is not None:
            if reason is Reason.ALWAYS_DENIED:
                closed = self._surroundings.closed.find(destination)
                rule = None if closed is None else str(closed)
            elif reason is Reason.DENIED_ADDRESS:
                decision = sandbox.policy.decide(destination)
                rule = None if decision.allowed else decision.rule
        return Subject(
            sandbox.sandbox_id,
            _protocol(packet.protocol),
            _NOT_IPV4 if destination is None else str(destination),
            packet.port,
            None,
            False,
            reason,
            rule,
        )

    def began(self, flow: Flow, sandbox: SandboxEntry) -> Subject | None:
        """What was let pass; None if the gateway decided, which tells of it itself."""
        subject = self._allowed(flow, sandbox)
        if subject is not None:
            if len(self._flows) >= MAX_FLOWS:
                del self._flows[next(iter(self._flows))]
            self._flows[flow.id] = subject
        return subject

    def ended(self, flow: Flow, sandbox: SandboxEntry | None) -> tuple[Subject, bool] | None:
        """What has ended, and whether :meth:`began` was told of it."""
        subject = self._flows.pop(flow.id, None)
        if subject is not None and subject.destination == str(flow.destination):
            return subject, True
        subject = None if sandbox is None else self._allowed(flow, sandbox)
        return None if subject is None else (subject, False)

    def _allowed(self, flow: Flow, sandbox: SandboxEntry) -> Subject | None:
        policy = sandbox.policy
        at_ingress = (flow.destination, flow.port) == self._surroundings.ingress
        inside = at_ingress and not policy.gateway_ports & {HTTPS, flow.port}
        if not flow.translated and not inside:
            return None
        decision = policy.decide(flow.destination)
        return Subject(
            sandbox.sandbox_id,
            _protocol(flow.protocol),
            str(flow.destination),
            flow.port,
            None,
            True,
            # It was let pass by a policy that has been replaced since.
            decision.reason if decision.allowed else Reason.POLICY_CHANGED,
            decision.rule,
            decision.reported,
        )


def _protocol(number: int) -> str:
    return _PROTOCOLS.get(number, str(number))
