"""Ends connections of a sandbox that its new policy does not let pass, at both of their ends.

The rules refuse the next packet of such a connection anyway; one that is idle would not be told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from sandgate.network import sockdiag
from sandgate.network.config import HOST_ADDRESS
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a sandbox's connections are."""

    slot: int
    pid: int
    """A process in the sandbox's network namespace."""
    pidfd: int
    """The same process, or that namespace."""
    address: IPv4Address
    """The sandbox's own."""


@dataclass(slots=True)
class Cutter:
    """Looks for connections that have to end. What the gateway has is the gateway's to judge.

    Listing the connections of one namespace, the kernel walks through those of all: 0.2 ms and
    more. How many a namespace has opened since it was made it tells in a tenth of that, so it is
    asked only whether there can be any.
    """

    _none_open: dict[int, int] = field(default_factory=dict)
    """How many each slot had opened when last it had none open."""

    def begin(self, slot: int) -> None:
        """A new namespace: it has opened none."""
        self._none_open.pop(slot, None)

    def around(
        self,
        sandbox: Inside,
        host: NetlinkSocket,
        admits: Callable[[IPv4Address], bool],
        apply: Callable[[], None],
    ) -> None:
        """Put new rules in force by `apply`, and end TCP connections to what is not admitted.

        `host` is a sock_diag socket of the host's namespace. It is looked twice: before, while the
        old rules hold, so that the far ends are told as well; and after, for what was opened in
        between. Raises what `apply` raises; nothing depends on the rest, which is only logged.
        """
        opened = self._cut(sandbox, host, admits, None)
        apply()
        self._cut(sandbox, host, admits, opened)

    def _cut(
        self,
        sandbox: Inside,
        host: NetlinkSocket,
        admits: Callable[[IPv4Address], bool],
        before: int | None,
    ) -> int | None:
        """Returns how many had been opened; looks only if that is not `before`."""
        try:
            # First: a connection is there for the kernel's list before it is counted.
            opened = opened_in(sandbox.pid)
            if opened not in (before, self._none_open.get(sandbox.slot, 0)):
                if _cut_denied(sandbox, host, admits):
                    self._none_open.pop(sandbox.slot, None)
                else:
                    self._none_open[sandbox.slot] = opened
        except OSError as error:
            _log.warning("connections of slot %d were not ended: %s", sandbox.slot, error)
            return None
        return opened


def opened_in(pid: int) -> int:
    """How many TCP connections were ever opened in the network namespace of a process.

    Raises OSError.
    """
    lines = Path(f"/proc/{pid}/net/snmp").read_bytes().splitlines()
    names, values = (line.split() for line in lines if line.startswith(b"Tcp:"))
    return int(values[names.index(b"ActiveOpens")])


def _cut_denied(
    sandbox: Inside, host: NetlinkSocket, admits: Callable[[IPv4Address], bool]
) -> bool:
    """Reset what is not admitted. Returns whether the sandbox had anything open. Raises OSError."""
    with inside(sandbox.pidfd):
        diag = NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)
    with diag:
        there = [
            found
            for found in sockdiag.connections(diag)
            if found.source == sandbox.address and found.destination != HOST_ADDRESS
        ]
        denied = [
            found
            for found in there
            if not admits(found.destination)
            # Not one that ends at a transparent socket of the gateway.
            and not sockdiag.exists(host, found.reversed())
        ]
        for found in denied:
            sockdiag.destroy(diag, found)
    return bool(there)
