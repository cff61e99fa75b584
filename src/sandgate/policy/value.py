"""What a sandbox may reach, as a value that decides. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any

from sandgate.policy.names import NameSet
from sandgate.policy.networks import NetworkSet
from sandgate.reasons import Reason

RESOLVER = IPv4Address("8.8.8.8")
"""The resolver every sandbox is configured with; the gateway answers it."""

WEB_PORTS = (80, 443)
"""The TCP ports that a name without a port stands for."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question. `rule` is the entry that decided, or None for the default."""

    allowed: bool
    reason: Reason
    rule: str | None = None
    reported: bool = False
    """It passes because the policy only reports; reason and rule are those it is not allowed by."""


class ResolverAccess(StrEnum):
    """What a resolver answers a sandbox."""

    ALL = "all"
    NAMES = "names"
    """Names that the policy allows; the rest is REFUSED."""
    NONE = "none"


class Mode(StrEnum):
    """What becomes of what a policy does not allow."""

    ENFORCE = "enforce"
    """It is refused."""
    REPORT = "report"
    """It passes, unless it is always denied, and the decision says so."""


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """What one sandbox may reach. The default allows everything."""

    allow: NetworkSet = field(default_factory=NetworkSet)
    deny: NetworkSet = field(default_factory=NetworkSet)
    names: NameSet = field(default_factory=NameSet)
    """Names allowed on :data:`WEB_PORTS`."""
    ports: Mapping[int, NameSet] = field(default_factory=dict, hash=False)
    """Names allowed on one TCP port each."""
    dns_servers: tuple[IPv4Address, ...] | None = None
    """Resolvers that names may be asked of. None: :data:`RESOLVER`."""
    mode: Mode = Mode.ENFORCE
    _known: NameSet = field(init=False, repr=False, compare=False)
    """Names that are allowed on any port."""

    def __post_init__(self) -> None:
        sets = (self.names, *self.ports.values())
        known = NameSet.of(pattern for names in sets for pattern in names.patterns())
        object.__setattr__(self, "_known", known)

    def decide(
        self, address: IPv4Address, name: str | None = None, port: int | None = None
    ) -> Decision:
        """May a connection to `address`, showing `name` (normalised), pass?

        `port` is the TCP port; None stands for one of :data:`WEB_PORTS`. Without a name it does
        not matter.
        """
        if name is not None and (entry := self.match(name, port)) is not None:
            return Decision(True, Reason.ALLOWED_NAME, entry)
        if (allowed := self.allow.find(address)) is not None:
            return Decision(True, Reason.ALLOWED_ADDRESS, str(allowed))
        if (denied := self.deny.find(address)) is not None:
            return self._refuse(Reason.DENIED_ADDRESS, str(denied))
        return Decision(True, Reason.DEFAULT_ALLOW)

    def decide_query(self, server: IPv4Address, name: str | None) -> Decision:
        """May the resolver at `server` be asked for `name` (None: no host name)?"""
        by_address = self.allow.find(server)
        if by_address is not None:
            return Decision(True, Reason.ALLOWED_ADDRESS, str(by_address))
        if self.deny.find(server) is None:
            return Decision(True, Reason.DEFAULT_ALLOW)
        if not self.has_names or server not in self._servers:
            return self._refuse(Reason.NO_RESOLVER)
        entry = self.resolves(name) if name is not None else None
        if entry is not None:
            return Decision(True, Reason.ALLOWED_NAME, entry)
        return self._refuse(Reason.NAME_NOT_ALLOWED)

    def match(self, name: str, port: int | None = None) -> str | None:
        """The entry that allows `name` (normalised) on TCP `port`, None being as in `decide`."""
        if port is None or port in WEB_PORTS:
            if (pattern := self.names.match(name)) is not None:
                return pattern
        names = self.ports.get(port) if port is not None else None
        if names is not None and (pattern := names.match(name)) is not None:
            return f"{pattern}:{port}"
        return None

    def resolves(self, name: str) -> str | None:
        """An entry that allows `name` (normalised) on some port."""
        pattern = self._known.match(name)
        if pattern is None or self.names.match(name) is not None:
            return pattern
        ports = (port for port, names in self.ports.items() if names.match(name) is not None)
        return self.match(name, next(ports))

    @property
    def has_names(self) -> bool:
        """Does it allow any name?"""
        return bool(self._known)

    @property
    def gateway_ports(self) -> frozenset[int]:
        """TCP ports whose new connections go to the gateway, which sees names."""
        web = WEB_PORTS if self.names or self.mode is Mode.REPORT else ()
        return frozenset((*web, *self.ports))

    @property
    def resolvers(self) -> tuple[IPv4Address, ...]:
        """Addresses at which the gateway answers DNS; other resolvers are addresses like any."""
        found = [RESOLVER] if self.resolver is not ResolverAccess.NONE else []
        if self.has_names:
            report = self.mode is Mode.REPORT
            for server in self._servers:
                if server not in found and (report or not self.decide(server).allowed):
                    found.append(server)
        return tuple(found)

    @property
    def resolver(self) -> ResolverAccess:
        """What the resolver that every sandbox is configured with answers."""
        return self.resolver_access(RESOLVER)

    def resolver_access(self, server: IPv4Address) -> ResolverAccess:
        """All where `server` passes as an address; else the allowed names, if it may be asked."""
        if self.decide(server).allowed:
            return ResolverAccess.ALL
        if self.has_names and server in self._servers:
            return ResolverAccess.NAMES
        return ResolverAccess.NONE

    @property
    def upstream(self) -> tuple[IPv4Address, ...] | None:
        """The servers that are asked for the sandbox's names. None: those of the node."""
        return self.dns_servers if self.has_names and self.dns_servers else None

    def to_json(self) -> dict[str, Any]:
        """The form that travels between processes."""
        ports = sorted(self.ports.items())
        return {
            "allow": self.allow.texts(),
            "deny": self.deny.texts(),
            "names": [
                *self.names.patterns(),
                *(f"{name}:{port}" for port, names in ports for name in names.patterns()),
            ],
            "dns": None if self.dns_servers is None else [str(item) for item in self.dns_servers],
            "mode": self.mode.value,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> EgressPolicy:
        """The inverse of :meth:`to_json`. Raises ValueError on anything malformed."""
        names, ports = split_ports(data["names"])
        servers = data.get("dns")  # what was written before these were there has neither
        return cls(
            allow=NetworkSet.parse(data["allow"]),
            deny=NetworkSet.parse(data["deny"]),
            names=names,
            ports=ports,
            dns_servers=None if servers is None else tuple(IPv4Address(item) for item in servers),
            mode=Mode(data.get("mode", Mode.ENFORCE)),
        )

    @property
    def _servers(self) -> tuple[IPv4Address, ...]:
        return (RESOLVER,) if self.dns_servers is None else self.dns_servers

    def _refuse(self, reason: Reason, rule: str | None = None) -> Decision:
        reported = self.mode is Mode.REPORT
        return Decision(reported, reason, rule, reported)


def split_ports(entries: Iterable[str]) -> tuple[NameSet, dict[int, NameSet]]:
    """Normalised entries as sets: those for the web's ports, and those of each port."""
    found: dict[int, list[str]] = {}
    web = []
    for entry in entries:
        name, colon, port = entry.partition(":")
        if colon:
            found.setdefault(int(port), []).append(name)
        else:
            web.append(name)
    return NameSet.of(web), {port: NameSet.of(names) for port, names in found.items()}
