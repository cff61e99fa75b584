"""A connection that should begin with a TLS ClientHello, and is passed through untouched."""

from __future__ import annotations

from ipaddress import IPv4Address

from sandgate.egress.client_hello import ClientHelloParser
from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.egress.relay import Leg
from sandgate.egress.session import Session, SessionContext
from sandgate.egress.table import Sandbox


class TlsSession(Session):
    """Reads the server name, then relays bytes both ways."""

    protocol = "tls"

    def __init__(
        self,
        context: SessionContext,
        sandbox: Sandbox,
        client: Leg,
        destination: IPv4Address,
        port: int,
    ) -> None:
        super().__init__(context, sandbox, client, destination, port)
        self._parser: ClientHelloParser | None = ClientHelloParser()

    def client_data(self, data: bytes) -> None:
        if self._parser is None:
            self.pass_on(data)
        elif (shown := self._parser.feed(data)) is not None:
            self._decide(shown)

    def upstream_data(self, data: bytes) -> None:
        self.client.write(data)

    def no_name(self, reason: NoNameReason) -> None:
        if self._parser is not None:
            self._decide(NoName(reason))

    def client_ended(self) -> None:
        if self._parser is not None:
            self.no_name(NoNameReason.CLOSED_EARLY)
        elif self.upstream is not None:
            self.upstream.finish()

    def connected(self) -> None:
        self.join()

    def _decide(self, shown: str | NoName) -> None:
        assert self._parser is not None
        self.held = self._parser.raw
        self._parser = None
        target = self.judge(shown)
        if target is not None:
            self.dial(target)
