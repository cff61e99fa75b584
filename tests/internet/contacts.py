"""The record of everything that reached the small internet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_CONTACTS = 200_000
"""More than any test makes; a runaway sender cannot eat the machine's memory."""


@dataclass(frozen=True, slots=True)
class Contact:
    """One thing that arrived.

    `kind` is `packet` (a TCP SYN, or any packet that is not TCP, seen on the wire before any
    program), `connection` (accepted, TLS finished if there is any), `request` (HTTP), `query`
    (DNS) or `data` (a piece that the counting echo received).
    """

    kind: str
    protocol: str
    """tcp, udp, icmp, ipv6, arp or the number of another protocol."""
    source: str
    destination: str
    port: int = 0
    name: str = ""
    """Host of a request, name of a query, SNI of a connection."""
    detail: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the control socket."""
        return asdict(self)


class Contacts(Sequence[Contact]):
    """Contacts, in order of arrival, that can be narrowed down."""

    def __init__(self, contacts: Sequence[Contact]) -> None:
        self._contacts = list(contacts)

    def where(self, **wanted: object) -> Contacts:
        """Those whose fields equal `wanted`, e.g. `where(kind="packet", port=443)`."""
        return Contacts(
            [
                contact
                for contact in self._contacts
                if all(getattr(contact, key) == value for key, value in wanted.items())
            ]
        )

    def without(self, **unwanted: object) -> Contacts:
        """Those for which not all of `unwanted` hold."""
        drop = {id(contact) for contact in self.where(**unwanted)}
        return Contacts([contact for contact in self._contacts if id(contact) not in drop])

    def __getitem__(self, index: Any) -> Any:
        return self._contacts[index]

    def __len__(self) -> int:
        return len(self._contacts)

    def __iter__(self) -> Iterator[Contact]:
        return iter(self._contacts)

    def __repr__(self) -> str:
        return "\n".join(map(str, self._contacts)) or "no contact"


class Journal:
    """Where the servers write contacts down."""

    def __init__(self) -> None:
        self.contacts: list[Contact] = []

    def add(
        self,
        kind: str,
        protocol: str,
        source: str,
        destination: str,
        port: int = 0,
        name: str = "",
        **detail: object,
    ) -> None:
        """Note one contact."""
        if len(self.contacts) < MAX_CONTACTS:
            self.contacts.append(
                Contact(kind, protocol, source, destination, port, name, dict(detail))
            )
