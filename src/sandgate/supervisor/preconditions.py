"""What this machine must offer before anything of a node is started, each with its remedy."""

from __future__ import annotations

import shutil
import socket

from sandgate.network import NamespaceInUseError, occupied, require_unclaimed
from sandgate.settings import Settings
from sandgate.supervisor.component import CHILD_ENVIRONMENT
from sandgate.supervisor.ports import bind_error, require_local
from sandgate.supervisor.supervisor import StartError

_DNS_PORT = 53
_PROGRAMS = {"haproxy": "haproxy", "mkfs.ext4": "e2fsprogs"}
"""What the components run, and Debian's package of it."""


def require_preconditions(settings: Settings) -> None:
    """Looks and changes nothing; components of an earlier run must have ended.

    Raises StartError or PortError.
    """
    require_programs()
    try:
        require_unclaimed()
        require_local(settings.listen)
        taken = range_in_use(settings)
    except NamespaceInUseError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(
            f"the network cannot be looked at: {error}; `sudo sandgate doctor` names the fix"
        ) from error
    if taken is not None:
        raise StartError(taken)
    _require_free_dns_port(settings)


def range_in_use(settings: Settings) -> str | None:
    """Why sandboxes cannot have their addresses in `address_range`, or None. Raises OSError."""
    own = (settings.ingress_address, settings.gateway_address)
    found = occupied(settings.address_range, own)
    if not found:
        return None
    return (
        f"address_range = {settings.address_range} is in use on this machine: "
        f"{', '.join(found[:3])}{' and others' if found[3:] else ''}; set address_range to a "
        "private range that nothing here uses, as 10.211.0.0/16"
    )


def require_programs() -> None:
    """Are the programs installed that components run? Raises StartError."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program, path=CHILD_ENVIRONMENT["PATH"]) is None:
            raise StartError(
                f"{program} is not installed in {CHILD_ENVIRONMENT['PATH']}; "
                f"run `apt-get install {package}`"
            )


def _require_free_dns_port(settings: Settings) -> None:
    """A server on all addresses has the port at the gateway's, too."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        problem = bind_error(settings.gateway_address, _DNS_PORT, kind)
        if problem is not None:
            raise StartError(
                f"port {_DNS_PORT} at {settings.gateway_address}, for sandboxes' questions of "
                f"names: {problem}; let the DNS server of this machine (see `ss -lntup sport = "
                f":{_DNS_PORT}`) listen on addresses of its own instead of on all (dnsmasq: "
                "bind-interfaces; BIND: listen-on; unbound: interface)"
            )
