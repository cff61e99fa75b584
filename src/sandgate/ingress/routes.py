"""What HAProxy knows about one sandbox, as a value. Pure: no I/O.

A route is one row of one HAProxy map, so that it appears, changes and goes at one instant: there
is no moment at which the address of a private sandbox is known and its token is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

ENVD_PORT = 49983
"""Port of the daemon in each sandbox; it checks a token of its own (e2b-wire-contract, 6.7)."""

JUPYTER_PORT = 49999
"""Port of the code interpreter's kernels (e2b-wire-contract, section 0)."""

PORT_PLACEHOLDER = "${PORT}"
"""What a mask writes where the decimal port goes; every occurrence is replaced."""

MAX_MASK = 255
"""Longest mask, in characters."""

MAX_HTTPS_PORTS = 100
"""Most ports of one sandbox that speak HTTPS themselves: all are in one row of HAProxy's map."""

_ID = re.compile(r"[a-z0-9]{1,63}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{8,256}")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_AUTHORITY = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(:(?P<port>[0-9]{1,5}))?")
_NONE = "-"
ASLEEP = "asleep"
"""In the place of an address: a request is to wake the sandbox first."""
FILLED = "-"
"""Key of a row that is there once all routes are: until then none is missing for good."""


class RouteError(ValueError):
    """A route that must not reach HAProxy. `field` names the part that is wrong."""

    def __init__(self, message: str, *, field: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Route:
    """Where a sandbox is and who may reach it.

    Raises :class:`RouteError` when built from a value that could break out of its map row.
    """

    sandbox_id: str
    address: IPv4Address | None
    """None: the sandbox is paused, and a request resumes it."""
    traffic_token: str | None = None
    """What callers of a private sandbox show; None for a public one."""
    mask_host: str | None = None
    """What the Host header becomes, as accepted by :func:`parse_mask`; None to leave it alone."""
    https_ports: tuple[int, ...] = ()
    """Ports that are connected to with TLS, as accepted by :func:`parse_https_ports`."""

    def __post_init__(self) -> None:
        check_sandbox_id(self.sandbox_id)
        if self.traffic_token is not None and not _TOKEN.fullmatch(self.traffic_token):
            # The value is a secret and stays out of the message.
            raise RouteError(
                "traffic_token must be 8 to 256 letters, digits, '_' or '-'", field="traffic_token"
            )
        if self.mask_host is not None:
            parse_mask(self.mask_host)
        parse_https_ports(self.https_ports)

    def __repr__(self) -> str:
        private = "private" if self.traffic_token is not None else "public"
        return (
            f"Route({self.sandbox_id!r}, {self.address}, {private}, mask={self.mask_host!r}, "
            f"https={self.https_ports})"
        )

    def value(self) -> str:
        """The map row: address, token, mask and HTTPS ports, separated by `|`, `-` for none."""
        ports = f",{','.join(map(str, self.https_ports))}," if self.https_ports else _NONE
        fields = (self.address or ASLEEP, self.traffic_token or _NONE, self.mask_host or _NONE)
        return "|".join((*map(str, fields), ports))


def check_sandbox_id(sandbox_id: str) -> None:
    """Raises :class:`RouteError` unless `sandbox_id` is what a host name can carry."""
    if not _ID.fullmatch(sandbox_id):
        raise RouteError(
            f"invalid sandbox_id {sandbox_id!r}: expected 1 to 63 of a-z and 0-9",
            field="sandbox_id",
        )


def parse_mask(value: str) -> str:
    """Check a `maskRequestHost`: a host name or address, `:port` if wanted, `${PORT}` anywhere.

    Returns it unchanged. Raises :class:`RouteError` with what is wrong (E2B answers 400 for
    `-https://abcd`; e2b-network-semantics, 1.7).
    """

    def refuse(why: str) -> RouteError:
        return RouteError(f"invalid maskRequestHost {value!r}: {why}", field="maskRequestHost")

    if not value:
        raise refuse("it is empty; leave it out to keep the Host header")
    if not value.isascii():
        raise refuse("write an international name in its ASCII form (xn--...)")
    if "://" in value or "/" in value:
        raise refuse("expected a host with an optional :port, not a URL or path")
    # With the shortest and the longest port: what is valid for both is valid for all.
    for port in ("1", "65535"):
        if (why := _authority_fault(value.replace(PORT_PLACEHOLDER, port))) is not None:
            raise refuse(why)
    return value


def parse_https_ports(ports: Iterable[int]) -> tuple[int, ...]:
    """Check `httpsPorts` (e2b-wire-contract, 2.3). Returns them ascending, each once.

    Raises :class:`RouteError` with what is wrong.
    """

    def refuse(port: int, why: str) -> RouteError:
        return RouteError(f"invalid port {port} in httpsPorts: {why}", field="httpsPorts")

    found = tuple(sorted(set(ports)))
    for port in found:
        if not 1 <= port <= 65535:
            raise refuse(port, "a port is a number from 1 to 65535")
        if port == ENVD_PORT:
            raise refuse(port, "it is the sandbox's own daemon's, which does not speak HTTPS")
    if len(found) > MAX_HTTPS_PORTS:
        raise RouteError(
            f"httpsPorts has {len(found)} ports; at most {MAX_HTTPS_PORTS} are supported",
            field="httpsPorts",
        )
    return found


def _authority_fault(authority: str) -> str | None:
    if len(authority) > MAX_MASK:
        return f"longer than {MAX_MASK} characters"
    matched = _AUTHORITY.fullmatch(authority)
    if matched is None:
        return "expected a host with an optional :port"
    host, port = matched["host"], matched["port"]
    if port is not None and not 1 <= int(port) <= 65535:
        return f"port {port} is not between 1 and 65535"
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except ValueError:
            return f"{host} is not an IPv6 address"
        return None if "%" not in host else "an IPv6 zone has no meaning here"
    labels = host.removesuffix(".").split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return f"{host!r} is not a host name (labels of letters, digits, '-' and '_')"
    return None
