"""Would this pass, and by which rule? The same code decides as for traffic. Pure but for names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any
from urllib.parse import urlsplit

from sandgate.egress.dial import Dialer, DialError
from sandgate.policy import RESOLVER, Decision, EgressPolicy, normalise_name
from sandgate.reasons import Reason

_SCHEMES = {"https": ("tcp", 443), "http": ("tcp", 80), "tcp": ("tcp", None), "udp": ("udp", None)}
HTTP = 80
"""The one port where only a name that is shown counts."""
_EXAMPLES = (
    "write https://example.com, tcp://db.example.com:5432, udp://1.1.1.1:53 or icmp://1.1.1.1"
)


class TargetError(ValueError):
    """What was asked about is nothing that a connection can be made to. The text says why."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a program in a sandbox would connect to."""

    protocol: str
    """tcp, udp or icmp."""
    host: IPv4Address | str
    """An address, or a name (normalised)."""
    port: int
    shows_name: bool
    """Is the name shown in the first bytes (HTTP, TLS)?"""


def parse_target(text: str) -> Target:
    """From `scheme://host[:port][/...]`, or `host:port` for TCP. Raises :class:`TargetError`."""

    def refuse(why: str) -> TargetError:
        return TargetError(f"target {text!r}: {why}; {_EXAMPLES}")

    if not text.isascii():
        raise refuse("an international name is written in its ASCII form (xn--...)")
    try:
        parts = urlsplit(text if "://" in text else f"tcp://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise refuse(str(error)) from None
    if not host:
        raise refuse("there is no host in it")
    where: IPv4Address | str
    try:
        where = IPv4Address(host)
    except ValueError:
        name = normalise_name(host)
        if name is None:
            raise refuse(f"{host!r} is neither an IPv4 address nor a host name") from None
        where = name
    if parts.scheme == "icmp":
        return Target("icmp", where, 0, False)
    if parts.scheme not in _SCHEMES:
        raise refuse(f"the scheme {parts.scheme!r} is not known here")
    protocol, usual = _SCHEMES[parts.scheme]
    port = usual if port is None else port
    if not port:
        raise refuse("there is no port in it")
    return Target(protocol, where, port, parts.scheme in ("https", "http"))


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would become of it."""

    target: Target
    address: IPv4Address | None
    """Where a name leads, as the sandbox would be told."""
    path: str
    """Who decides: `resolver`, `gateway` or `kernel`."""
    allowed: bool
    reason: Reason
    rule: str | None = None
    reported: bool = False

    def to_json(self) -> dict[str, Any]:
        """In the words of the API."""
        return {
            "verdict": "allow" if self.allowed else "deny",
            "reason": self.reason.value,
            "rule": self.rule,
            "reported": self.reported,
            "path": self.path,
            "protocol": self.target.protocol,
            "name": self.target.host if isinstance(self.target.host, str) else None,
            "destination": None if self.address is None else str(self.address),
            "port": self.target.port,
        }


def explain(
    policy: EgressPolicy,
    target: Target,
    addresses: Sequence[IPv4Address],
    denies: Callable[[IPv4Address, int], bool],
) -> Explanation:
    """Judge a connection to the first of `addresses`, those of the target's name, or itself.

    `denies` says whether an address is out of reach whatever the policy says.
    """
    name = target.host if isinstance(target.host, str) else None
    if name is not None:
        query = _ask(policy, name)
        if not query.allowed:
            return Explanation(target, None, "resolver", False, query.reason)
    if not addresses:
        return Explanation(target, None, "resolver", False, Reason.NAME_UNRESOLVABLE)
    address = addresses[0]
    if denies(address, target.port):
        return Explanation(target, address, "kernel", False, Reason.ALWAYS_DENIED)
    if target.protocol != "tcp" or target.port not in policy.gateway_ports:
        found = policy.decide(address)
        path = "kernel"
    else:
        # Where an entry has the name and the port, the address stands for the name.
        names = policy.ports.get(target.port) if name and target.port != HTTP else None
        pinned = names is not None and names.match(name or "") is not None
        by_name = target.shows_name or pinned
        found = policy.decide(address, name if by_name else None, target.port)
        path = "gateway"
    return Explanation(
        target, address, path, found.allowed, found.reason, found.rule, found.reported
    )


def _ask(policy: EgressPolicy, name: str) -> Decision:
    """The decision of a resolver that answers, if there is one among those that may be asked."""
    servers = (*policy.resolvers, *(policy.upstream or ()), RESOLVER)
    decisions = [policy.decide_query(server, name) for server in servers]
    return next((found for found in decisions if found.allowed), decisions[0])


class Explainer:
    """Explains with the gateway's own view of names and addresses."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer

    async def explain(self, policy: EgressPolicy, text: str) -> dict[str, Any]:
        """As :func:`explain`, in the words of the API. Raises :class:`TargetError`."""
        target = parse_target(text)
        addresses: Sequence[IPv4Address]
        if isinstance(target.host, str):
            try:
                addresses = await self._dialer.addresses(target.host, policy.upstream)
            except DialError:
                addresses = ()
        else:
            addresses = (target.host,)
        return explain(policy, target, addresses, self._dialer.denies).to_json()
