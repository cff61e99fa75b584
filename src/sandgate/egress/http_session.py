"""An HTTP/1.x connection: every request on it is judged by itself and goes only where it may.

Requests are sent on as they are. As long as they are for the same allowed name they share one
connection to it; another target is dialled anew once the responses before it have ended. A request
that is allowed by its address alone, and what follows it, is no longer HTTP to us: it is relayed
to that address, which the sandbox may reach anyway.
"""

from __future__ import annotations

from enum import Enum, auto
from ipaddress import IPv4Address

from sandgate.egress.http1 import RequestHead, RequestHeadParser
from sandgate.egress.http1_body import BodyFramer, FramingError
from sandgate.egress.http1_response import ResponseTracker
from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.egress.relay import BULK, UNLIMITED, Leg, Pause
from sandgate.egress.session import Session, SessionContext
from sandgate.egress.table import Sandbox
from sandgate.reasons import Reason

LINGER_SECONDS = 30.0
"""How long the sandbox has to close its side once the origin has closed the other."""


class _State(Enum):
    HEAD = auto()
    """Reading a request head."""
    BODY = auto()
    """Passing on the body of a request."""
    WAITING = auto()
    """A judged request waits for responses to end, for a connection, or both."""
    UPGRADING = auto()
    """WebSocket was asked for; nothing may pass until the origin has answered."""
    TUNNEL = auto()
    """Bytes are relayed as they are."""


class HttpSession(Session):
    """Judges the requests on one connection."""

    protocol = "http"

    def __init__(
        self,
        context: SessionContext,
        sandbox: Sandbox,
        client: Leg,
        destination: IPv4Address,
        port: int,
    ) -> None:
        super().__init__(context, sandbox, client, destination, port)
        self._state = _State.HEAD
        self._parser = RequestHeadParser()
        self._next: RequestHead | NoName | None = None
        self._framer = BodyFramer(0)
        self._tracker = ResponseTracker()

    def client_data(self, data: bytes) -> None:
        self.held += data
        self._advance()

    def upstream_data(self, data: bytes) -> None:
        self._tracker.feed(data)
        self.client.write(data)
        self._after_response()

    def passed(self, leg: Leg) -> None:
        if leg is self.client:
            self._framer.skip()
            self._end_body()
            self._advance()
        else:
            self._tracker.skip()
            self._after_response()

    def _after_response(self) -> None:
        """Do what could not be done before what the origin has just sent."""
        if self._tracker.switched:
            self._start_tunnel()
        elif self._state is _State.UPGRADING and self._tracker.idle:
            self._state = _State.HEAD
            self._advance()
        elif self._state is _State.WAITING and self._tracker.idle:
            self._route()
            self._advance()
        elif self.upstream is not None:
            unseen = self._tracker.unseen
            if unseen is None or unseen >= BULK:
                self.upstream.pass_to(self.client, UNLIMITED if unseen is None else unseen)

    def upstream_ended(self) -> None:
        self.client.finish()
        if self._state is not _State.TUNNEL:
            self.close_after(LINGER_SECONDS)

    def client_ended(self) -> None:
        if self.target is None and self._state is _State.HEAD:
            self.no_name(NoNameReason.CLOSED_EARLY)
        else:
            self._pass_end_on()

    def no_name(self, reason: NoNameReason) -> None:
        self.held = self._parser.raw
        self._take(NoName(reason))

    def connected(self) -> None:
        if self.target is not None and self.target.name is None:
            self._start_tunnel()
            return
        self._tracker = ResponseTracker()
        self._forward()
        self._advance()

    def _advance(self) -> None:
        """Do with what is held whatever can be done."""
        while self.held and self._state in (_State.HEAD, _State.BODY):
            if self._state is _State.HEAD:
                if self.upstream is not None and self.upstream.eof_in:
                    self._close()  # nobody is left to answer another request
                    return
                result = self._parser.feed(self.held)
                self.held.clear()
                if result is None:
                    break
                self.held = self._parser.raw
                self._parser = RequestHeadParser()
                self._take(result)
            elif not self._pass_body():
                break
        if self._state in (_State.WAITING, _State.UPGRADING):
            self.hold_if_full()
        else:
            self.client.resume(Pause.HELD)
        if self.client.eof_in:
            self._pass_end_on()

    def _pass_body(self) -> bool:
        """Send on what belongs to the current request. True if more of what is held can go."""
        assert self.upstream is not None
        try:
            size = self._framer.take(self.held)
        except FramingError as error:
            self.refuse(Reason.BAD_REQUEST, detail=str(error))
            return False
        self.upstream.write(self.held[:size])
        del self.held[:size]
        if self._framer.left >= BULK:
            self.client.pass_to(self.upstream, self._framer.left)
        return self._end_body()

    def _end_body(self) -> bool:
        if not self._framer.done:
            return False
        assert isinstance(self._next, RequestHead)
        self._state = _State.UPGRADING if self._next.websocket else _State.HEAD
        self._next = None
        return True

    def _take(self, request: RequestHead | NoName) -> None:
        self._next = request
        self._state = _State.WAITING
        self._route()

    def _route(self) -> None:
        """Send the next request on its way, or leave it waiting."""
        request = self._next
        assert request is not None
        target = self.judge(request if isinstance(request, NoName) else request.name)
        if target is None:
            return
        if self.upstream is None:
            self.dial(target)
        elif (
            self.target is not None
            and target.name is not None
            and (target.name == self.target.name)
        ):
            if not self._tracker.full:
                self._forward()
        elif self._tracker.idle:
            self.close_upstream()
            self.dial(target)

    def _forward(self) -> None:
        """Send the head of the next request to the origin that is dialled."""
        request = self._next
        assert isinstance(request, RequestHead) and self.upstream is not None
        self._tracker.expect(request.method, request.websocket)
        self.upstream.write(request.head)
        del self.held[: request.size]
        self._framer = BodyFramer(request.body)
        self._state = _State.BODY
        self._end_body()

    def _start_tunnel(self) -> None:
        assert self.upstream is not None
        self._state = _State.TUNNEL
        self._next = None
        self.join()

    def _pass_end_on(self) -> None:
        """Tell the origin that the sandbox has ended, once nothing waits to be sent."""
        if self.client.eof_in and self.upstream is not None and not self.held:
            if self._state is not _State.WAITING:
                self.upstream.finish()
