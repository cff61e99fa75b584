"""A connection to a port that the policy allows names on, other than the web's.

It shows no name by itself, and its server may speak first. So what counts is the address: one that
the gateway answered for an allowed name (:mod:`sandgate.egress.pins`), or that is allowed as such.
It is dialled at once. What the sandbox sends first is kept back until it is clear whether that is
TLS; if it is, its server name must be allowed on the port too.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from sandgate.egress.client_hello import ClientHelloParser
from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.egress.relay import Leg
from sandgate.egress.session import Session, SessionContext, Target
from sandgate.egress.table import Sandbox
from sandgate.policy import Decision


def pinned_name(sandbox: Sandbox, address: IPv4Address, port: int, now: float) -> str | None:
    """The name that is allowed on `port` by an entry for that port, and has `address`, if any."""
    names = sandbox.policy.ports.get(port)
    if names is None:
        return None
    pinned = sandbox.pins.names(address, now)
    return next((name for name in pinned if names.match(name) is not None), None)


class PortSession(Session):
    """Dials where the sandbox wants to go, and relays bytes both ways."""

    def __init__(
        self,
        context: SessionContext,
        sandbox: Sandbox,
        client: Leg,
        destination: IPv4Address,
        port: int,
    ) -> None:
        super().__init__(context, sandbox, client, destination, port)
        self.stop_waiting()  # the server may speak first, so nothing need come
        self._parser: ClientHelloParser | None = ClientHelloParser()
        self._pinned = pinned_name(sandbox, destination, port, context.loop.time())
        self._server_name: str | NoName | None = None
        """What the ClientHello said, if there was one."""
        decision = sandbox.policy.decide(destination, self._pinned, port)
        refused = not decision.allowed or decision.reported
        target = Target(None, self._pinned, decision, "not_pinned" if refused else None)
        if decision.allowed:
            self.dial(target)
        else:
            self.refuse(decision.reason, target)

    def client_data(self, data: bytes) -> None:
        if self._parser is None:
            self.pass_on(data)
            return
        if not self._parser.raw:
            self.wait_for_name()
        shown = self._parser.feed(data)
        if shown is not None:
            self._seen(shown)

    def upstream_data(self, data: bytes) -> None:
        self.client.write(data)

    def no_name(self, reason: NoNameReason) -> None:
        if self._parser is not None:
            self._seen(NoName(reason))

    def client_ended(self) -> None:
        if self._parser is not None:
            if self._parser.raw:
                self.no_name(NoNameReason.CLOSED_EARLY)
            else:
                self._seen(NoName(NoNameReason.NOT_TLS))
        if self.upstream is not None and not self.held:
            self.upstream.finish()

    def connected(self) -> None:
        assert self.upstream is not None
        self.upstream.pass_to(self.client)
        if self._parser is None:
            self.join()

    def judge_again(self) -> None:
        if self.target is not None and not self._judge().allowed:
            self.cut_by_policy()

    def _judge(self) -> Decision:
        """By the pin and, where there is one, by the server name: both must be allowed."""
        policy, shown = self.sandbox.policy, self._server_name
        decision = policy.decide(self.destination, self._pinned, self.port)
        if shown is None or not decision.allowed:
            return decision
        name = shown if isinstance(shown, str) else None
        return policy.decide(self.destination, name, self.port)

    def _seen(self, shown: str | NoName) -> None:
        """It is clear now what the sandbox's first bytes are."""
        assert self._parser is not None and self.target is not None
        self.stop_waiting()
        first, self._parser = self._parser.raw, None
        detail = None
        if isinstance(shown, NoName):
            detail = shown.reason.value
        if detail != NoNameReason.NOT_TLS:
            self._server_name = shown
            name = shown if isinstance(shown, str) else self.target.shown
            decision = self._judge()
            self.target = Target(None, name, decision, detail)
            if not decision.allowed:
                self.refuse(decision.reason)
                return
        self.pass_on(bytes(first))
        if self.upstream is not None:
            self.client.pass_to(self.upstream)
