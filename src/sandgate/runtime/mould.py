"""The process that cells are forked from, which does nothing else.

A page that a parent writes to after a fork is no longer shared: the child has the old one for
itself. This process hardly writes, and it has imported what a cell needs and nothing more: that
makes forks cheap and sandboxes small. It ends when the assembler does; the cells do not.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
from base64 import b64decode
from dataclasses import dataclass
from typing import NoReturn

from sandgate.envd.blank import Blank
from sandgate.envd.daemon import preload
from sandgate.runtime import cell as inside
from sandgate.runtime import linux
from sandgate.runtime.cgroups import Cgroups, cgroups_from_json
from sandgate.runtime.children import first_message, join, seal_imports
from sandgate.runtime.orders import MAX_MESSAGE, Order


@dataclass(frozen=True, slots=True)
class _Equipment:
    """What all cells have in common."""

    cgroups: Cgroups
    scratch: str
    seccomp: bytes
    daemon: Blank


def _fork(orders: socket.socket, order: Order, equipment: _Equipment, own_pids: int) -> None:
    try:
        # Only the next child is put into the new namespace; going back is what allows the one
        # after it to have its own.
        linux.unshare(linux.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                inside.run(_plan(order, equipment))
        finally:
            linux.setns(own_pids, linux.CLONE_NEWPID)
    except OSError as error:
        orders.send(json.dumps({"errno": error.errno}).encode())
    else:
        # Nothing can have taken the pid: pids are reused only after all others.
        pidfd = os.pidfd_open(pid)
        socket.send_fds(orders, [json.dumps({"pid": pid}).encode()], [pidfd])
        os.close(pidfd)
    finally:
        order.close()


def _plan(order: Order, equipment: _Equipment) -> inside.CellPlan:
    return inside.CellPlan(
        channel=socket.socket(fileno=order.channel),
        join_cgroups=equipment.cgroups.join_paths(order.group),
        open_meter=lambda: equipment.cgroups.meter(order.group),
        network=order.network,
        users=order.users,
        root=order.root,
        scratch=equipment.scratch,
        seccomp=equipment.seccomp,
        daemon=equipment.daemon,
        interpreter=order.interpreter,
    )


def main() -> NoReturn:
    """Fork what is ordered, until the assembler is gone."""
    orders = join()
    preload()
    daemon = Blank()
    daemon.prepare()
    told = json.loads(first_message(orders, MAX_MESSAGE))
    equipment = _Equipment(
        cgroups_from_json(told["cgroups"]),
        told["scratch"],
        b64decode(told["seccomp"]),
        daemon,
    )
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries the cells
    seal_imports()
    gc.collect()
    gc.freeze()  # what is there now is shared with every sandbox: collections must not touch it
    while (order := Order.receive(orders)) is not None:
        _fork(orders, order, equipment, own_pids)
    os._exit(0)


if __name__ == "__main__":
    main()
