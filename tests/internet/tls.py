"""Certificates of the small internet: one CA, one certificate for each name that is asked for."""

from __future__ import annotations

import ssl
from weakref import WeakKeyDictionary

import trustme

_ADDRESSES = ("1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "8.8.8.9", "9.9.9.9", "203.0.113.66")


class Certificates:
    """Makes server contexts that choose the certificate by SNI and remember the SNI."""

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._by_name: dict[str, ssl.SSLContext] = {}
        self._shown: WeakKeyDictionary[ssl.SSLObject, str] = WeakKeyDictionary()
        self.context = self._make(_ADDRESSES)
        self.context.sni_callback = self._choose

    @property
    def ca_pem(self) -> str:
        """The CA's certificate."""
        return self._authority.cert_pem.bytes().decode()

    def sni(self, connection: ssl.SSLObject) -> str | None:
        """The name that a client showed."""
        return self._shown.get(connection)

    def _make(self, names: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        return context

    def _choose(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name is not None:
            self._shown[connection] = name
            if name not in self._by_name:
                self._by_name[name] = self._make((name.rstrip("."),))
            connection.context = self._by_name[name]
