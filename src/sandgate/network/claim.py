"""Whose the node's table in a network namespace is: there can be one node in each.

The table's comment names the process that made it. From Linux 6.9 on the kernel keeps others from
changing a table that is owned; before, the comment alone tells that its node still runs (and only
to processes that see the same pids).
"""

from __future__ import annotations

import os
import re
from contextlib import closing
from pathlib import Path

from sandgate.network import listing, nftables, ruleset
from sandgate.network.netlink import NetlinkSocket

_WORD = re.compile(r"(?:^| )by:(\d+):(\d+)(?: |$)")


class NamespaceInUseError(RuntimeError):
    """Another node runs in this network namespace. The text says what to do."""


def word() -> str:
    """A word for the table's comment that names this process."""
    pid = os.getpid()
    return f"by:{pid}:{_start_time(pid)}"


def require_unclaimed() -> None:
    """Raises NamespaceInUseError if another node runs in the calling thread's network namespace,
    as far as that can be told without trying; OSError if tables cannot be listed.
    """
    with closing(NetlinkSocket(nftables.NETLINK_NETFILTER)) as netfilter:
        refuse_claimed(listing.read_comment(netfilter, ruleset.TABLE))


def refuse_claimed(comment: str | None) -> None:
    """Raises NamespaceInUseError if the table with this comment belongs to another process that
    lives."""
    match = _WORD.search(comment or "")
    if match is None:
        return
    pid = int(match[1])
    if pid != os.getpid() and _start_time(pid) == int(match[2]):
        raise in_use(pid)


def in_use(pid: int | None = None) -> NamespaceInUseError:
    """The error, with the pid of the other node's launcher if it is known."""
    whose = "" if pid is None else f" (its launcher has pid {pid})"
    return NamespaceInUseError(
        f"another node runs in this network namespace{whose}, and there can be one in each; stop "
        "it with `sandgate down` and its --config, or start this one in another network namespace "
        "that has a way out: `ip netns exec NAME sandgate up`"
    )


def _start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot (proc(5)); None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])
