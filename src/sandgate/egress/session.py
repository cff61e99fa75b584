"""What all proxied connections of sandboxes have in common: judging, dialling, joining, ending."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from ipaddress import IPv4Address

from sandgate.egress.decision_log import DecisionLog, Entry
from sandgate.egress.dial import TLS_PORT, Dialer, DialError, Dialling
from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.egress.relay import Leg, Pause
from sandgate.egress.table import Sandbox, SandboxTable
from sandgate.egress.timeouts import Timeouts
from sandgate.policy import Decision
from sandgate.reasons import Reason

NAME_SECONDS = 5.0
"""How long a connection may take to show a name."""

MAX_HELD = 65_536
"""Bytes kept of what may not be sent on yet, above which the sandbox is no longer read."""


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What a session works with."""

    table: SandboxTable
    dialer: Dialer
    log: DecisionLog
    loop: asyncio.AbstractEventLoop
    names: Timeouts
    """Of :data:`NAME_SECONDS`."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where an allowed connection leads: to a name, or to the address that the sandbox dialled."""

    name: str | None
    """Set if the policy allows this name: it is dialled, not the address."""
    shown: str | None
    """The name that was shown, allowed or not."""
    decision: Decision
    detail: str | None = None


class Session(ABC):
    """One connection of a sandbox. Subclasses read the name.

    The life of a session: it reads until :meth:`judge` is called, is then either reset or leads to
    a target, and may be led to another target later (HTTP). `upstream` is None while dialling.
    """

    protocol = "tcp"

    def __init__(
        self,
        context: SessionContext,
        sandbox: Sandbox,
        client: Leg,
        destination: IPv4Address,
        port: int,
    ) -> None:
        self.context = context
        self.sandbox = sandbox
        self.client = client
        self.destination = destination
        self.port = port
        self.upstream: Leg | None = None
        self.target: Target | None = None
        self.held = bytearray()
        """What the sandbox sent and may not be sent on yet."""
        self._started = context.loop.time()
        self._dialling: Dialling | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._over = False
        self._begun = False
        """Was it told that the current target is connected to?"""
        self.wait_for_name()
        client.owner = self
        context.table.add_connection(sandbox, self)

    # What subclasses define.

    @abstractmethod
    def client_data(self, data: bytes) -> None:
        """Bytes came from the sandbox."""

    @abstractmethod
    def upstream_data(self, data: bytes) -> None:
        """Bytes came from the origin."""

    @abstractmethod
    def connected(self) -> None:
        """The target was dialled and is joined as `upstream`; what is held can go."""

    @abstractmethod
    def client_ended(self) -> None:
        """The sandbox will send no more."""

    @abstractmethod
    def no_name(self, reason: NoNameReason) -> None:
        """No name will come: the rules for addresses decide."""

    def upstream_ended(self) -> None:
        """The origin will send no more."""
        self.client.finish()

    # Events of the legs.

    def data(self, leg: Leg, data: bytes) -> None:
        if leg is self.client:
            self.client_data(data)
        else:
            self.upstream_data(data)

    def ended(self, leg: Leg) -> None:
        if leg is self.client:
            self.client_ended()
        else:
            self.upstream_ended()
        self._close_if_done()

    def lost(self, leg: Leg) -> None:
        other = self.upstream if leg is self.client else self.client
        self._end()
        if other is not None:
            other.reset()

    def passed(self, leg: Leg) -> None:
        """Only who limits what is passed on unseen has to know (HTTP)."""
        raise AssertionError("what is unlimited has no end")

    def congested(self, leg: Leg) -> None:
        other = self.upstream if leg is self.client else self.client
        if other is not None:
            if leg.full:
                other.pause(Pause.PEER_FULL)
            else:
                other.resume(Pause.PEER_FULL)

    # Decisions.

    def judge(self, shown: str | NoName) -> Target | None:
        """Decide where this goes. None: nowhere, and the connection is reset."""
        self.stop_waiting()
        name, detail = (None, shown.reason.value) if isinstance(shown, NoName) else (shown, None)
        usable = name if name and self._serves(name) else None
        decision = self._decision_on(usable)
        by_name = usable if decision.reason is Reason.ALLOWED_NAME else None
        target = Target(by_name, name, decision, detail)
        if decision.allowed:
            return target
        self.refuse(decision.reason, target)
        return None

    def _serves(self, name: str) -> bool:
        """Does this port lead to `name`? That of the ingress is for the node's names only."""
        dialer = self.context.dialer
        return dialer.is_own(name) or not dialer.is_ingress(self.destination, self.port)

    def _decision_on(self, name: str | None) -> Decision:
        policy = self.sandbox.policy
        decision = policy.decide(self.destination, name, self.port)
        if decision.reason is not Reason.ALLOWED_NAME:
            if self.context.dialer.is_ingress(self.destination, self.port):
                # Sandbox URLs are HTTPS, on whatever port the node has.
                return policy.decide(self.destination, name, TLS_PORT)
        return decision

    def dial(self, target: Target) -> None:
        """Connect to `target`; :meth:`connected` follows, or a reset."""
        self.target = target
        self.upstream = None
        self._begun = False
        self._started = self.context.loop.time()
        dialer, port, speaks = self.context.dialer, self.port, bool(self.held)
        if target.name is None:
            address = self.destination
            self._dialling = dialer.by_address(address, port, self._dialled, speaks=speaks)
        else:
            name, servers = target.name, self.sandbox.policy.upstream
            self._dialling = dialer.by_name(name, port, servers, self._dialled, speaks=speaks)

    def refuse(
        self, reason: Reason, target: Target | None = None, detail: str | None = None
    ) -> None:
        """Log a refusal and reset both sides.

        It is that of the current target, unless another (a later request's) is given.
        """
        upstream = self.upstream
        if target is None:
            target = self.target
        else:
            self._log_end()
            upstream = None
        self._log(target, upstream, allowed=False, reason=reason, detail=detail)
        self._reset()

    def pass_on(self, data: bytes) -> None:
        """Send on to the target, or keep until it is connected to."""
        if self.upstream is not None:
            self.upstream.write(data)
        else:
            self.held += data
            self.hold_if_full()

    def send_held(self) -> None:
        """Send on what was kept, and the sandbox's end if that has come."""
        assert self.upstream is not None
        self.upstream.write(self.held)
        self.held.clear()
        self.client.resume(Pause.HELD)
        if self.client.eof_in:
            self.upstream.finish()

    def join(self) -> None:
        """Send on what was kept, and from now on whatever comes, either way."""
        assert self.upstream is not None
        self.client.pass_to(self.upstream)
        self.upstream.pass_to(self.client)
        self.send_held()

    def hold_if_full(self) -> None:
        """Stop reading the sandbox once enough is held."""
        if len(self.held) > MAX_HELD:
            self.client.pause(Pause.HELD)

    def judge_again(self) -> None:
        target = self.target
        if target is None:
            return  # will be judged by the new policy
        policy = self.sandbox.policy
        if target.name is not None and self._decision_on(target.name).reason is Reason.ALLOWED_NAME:
            return
        # By address, what counts is the address really dialled, not the one that was claimed.
        if target.name is None:
            address: IPv4Address | None = self.destination
        else:
            address = self.upstream.address if self.upstream is not None else None
        if address is None or not policy.decide(address).allowed:
            self.cut_by_policy()

    def cut_by_policy(self) -> None:
        """Reset the connection because the policy no longer allows it."""
        self.cut(Reason.POLICY_CHANGED)

    def cut(self, outcome: Reason) -> None:
        if self.target is None:
            self._reset()
        else:
            self.refuse(outcome)

    def close_upstream(self) -> None:
        """Log and close the connection to the current target; the sandbox's side stays open."""
        upstream = self.upstream
        if upstream is not None:
            self._log_end()
            upstream.owner = None
            upstream.close()
            self.upstream = None
            self.target = None
            self.client.resume(Pause.PEER_FULL)

    def close_after(self, seconds: float) -> None:
        """Close both sides if they are still open after `seconds`."""
        if self._closing is not None:
            self._closing.cancel()
        self._closing = self.context.loop.call_later(seconds, self._close)

    # Inner workings.

    def wait_for_name(self) -> None:
        """Begin the time in which a name must be shown."""
        self.context.names.start(self._name_timeout)

    def stop_waiting(self) -> None:
        """A name was shown, or none need be."""
        self.context.names.stop(self._name_timeout)

    def _name_timeout(self) -> None:
        self.no_name(NoNameReason.TIMEOUT)

    def _dialled(self, leg: Leg | DialError) -> None:
        target = self.target
        assert target is not None
        if isinstance(leg, DialError):
            self.refuse(leg.reason, detail=leg.detail)
            return
        self.upstream = leg
        leg.owner = self
        reason, detail = target.decision.reason, target.detail
        self.context.log.begin(self._entry(target, leg, True, reason, detail))
        self._begun = True
        self.connected()
        if self.upstream is leg:
            self.congested(self.client)  # it may have been full before they were joined

    def _close_if_done(self) -> None:
        upstream = self.upstream
        if upstream is not None and self.client.eof_in and upstream.eof_in:
            if self.client.eof_out and upstream.eof_out:
                self._close()

    def _close(self) -> None:
        upstream = self.upstream
        self._end()
        self.client.close()
        if upstream is not None:
            upstream.close()

    def _reset(self) -> None:
        upstream = self.upstream
        self.target = None
        self._end()
        self.client.reset()
        if upstream is not None:
            upstream.reset()

    def _end(self) -> None:
        """Leave everything that knows this session. Idempotent."""
        if self._over:
            return
        self._over = True
        self.stop_waiting()
        if self._closing is not None:
            self._closing.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        if self.target is not None:
            self._log_end()
        self.client.owner = None
        if self.upstream is not None:
            self.upstream.owner = None
        self.held.clear()
        self.context.table.discard_connection(self.sandbox, self)

    def _log_end(self) -> None:
        target = self.target
        if target is not None:
            reason = target.decision.reason
            self._log(target, self.upstream, allowed=True, reason=reason, detail=target.detail)

    def _log(
        self,
        target: Target | None,
        upstream: Leg | None,
        *,
        allowed: bool,
        reason: Reason,
        detail: str | None,
    ) -> None:
        entry = self._entry(target, upstream, allowed, reason, detail)
        self.context.log.write(entry, self.sandbox.lines)

    def _entry(
        self,
        target: Target | None,
        upstream: Leg | None,
        allowed: bool,
        reason: Reason,
        detail: str | None,
    ) -> Entry:
        return Entry(
            sandbox_id=self.sandbox.sandbox_id,
            protocol=self.protocol,
            destination=str(self.destination),
            port=self.port,
            allowed=allowed,
            reason=reason,
            name=target.shown if target else None,
            rule=target.decision.rule if target else None,
            reported=allowed and target is not None and target.decision.reported,
            detail=detail or (target.detail if target else None),
            sent=upstream.sent if upstream else 0,
            received=upstream.received if upstream else 0,
            seconds=self.context.loop.time() - self._started,
            begun=allowed and self._begun,
        )
