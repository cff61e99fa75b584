"""The inside of a sandbox, from the launcher's fork to envd. Runs in the child only.

A cell is a sandbox that is not yet anybody's: namespaces, mounts and limits stand, and its process
waits. Given a name and a configuration it drops what it can no longer need (the machine's
identity, capabilities, system calls) and becomes envd.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sandgate.envd import EnvdConfig
from sandgate.envd.blank import Blank
from sandgate.envd.daemon import LISTEN_BACKLOG, Standby
from sandgate.envd.small_files import overwrite
from sandgate.runtime import linux, rootfs
from sandgate.runtime.cell_channel import (
    ENVD_PORT,
    FAILED,
    INTERPRETER_PORT,
    MAX_MESSAGE,
    READY,
    UP,
)
from sandgate.runtime.meters import Meter
from sandgate.runtime.privileges import drop_powers

_MAX_CONFIG = 4 << 20
_OOM_SCORE = "300"


@dataclass(frozen=True, slots=True)
class CellPlan:
    """What the child needs, all of it opened by the launcher."""

    channel: socket.socket
    """SEQPACKET to the launcher: READY, then (hostname, descriptor) comes in, then UP.

    With READY goes the interpreter's listening socket, if there is one, and its number here.
    """
    join_cgroups: Sequence[str]
    open_meter: Callable[[], Meter]
    """Opens the sandbox's own figures, which lie where it cannot look."""
    network: int
    users: int
    root: rootfs.RootFs
    scratch: str
    seccomp: bytes
    daemon: Blank
    interpreter: bool
    """Whether there is a socket that the launcher starts an interpreter behind."""

    def descriptors(self) -> set[int]:
        """All that must stay open in the child."""
        return {
            self.channel.fileno(),
            self.network,
            self.users,
            self.root.disk,
            *self.root.layers,
        }


def run(plan: CellPlan) -> NoReturn:
    """Become the sandbox. Never returns; reports failures over the channel."""
    try:
        _reset_process(plan)
        listener, door, meter = _enter(plan)
        drop_powers(plan.users, plan.seccomp)
        _write_names("sandbox")
        standby = Standby(plan.daemon, listener, meter.read)
        if door is None:
            plan.channel.send(READY)
        else:
            # It stays open here as well: for a launcher that comes after this one.
            socket.send_fds(plan.channel, [READY, str(door.fileno()).encode()], [door.fileno()])
        hostname, config = _receive_start(plan.channel)
        configuration = EnvdConfig.from_json(config)

        def up() -> None:
            _report_up(plan.channel)
            # Before anything is answered, since that is for this thread to do.
            _write_names(hostname)

        standby.serve(configuration, up)
    except BaseException as error:
        # The launcher's frames are below this one: nothing may unwind into them.
        report = FAILED + f"{type(error).__name__}: {error}".encode()
        try:
            plan.channel.send(report[:MAX_MESSAGE])
        finally:
            os._exit(1)


def _reset_process(plan: CellPlan) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    assert plan.daemon.inherited is not None
    plan.daemon.inherited.renew()
    linux.close_all_but(plan.descriptors() | plan.daemon.inherited.descriptors())
    os.setsid()
    # The launcher's may be low: where the machine is out of memory, sandboxes come first.
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _enter(plan: CellPlan) -> tuple[socket.socket, socket.socket | None, Meter]:
    for path in plan.join_cgroups:
        Path(path).write_text("0")
    meter = plan.open_meter()
    linux.unshare(
        linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWCGROUP
    )
    linux.setns(plan.network, linux.CLONE_NEWNET)
    os.close(plan.network)
    listener = _listen(ENVD_PORT)
    door = _listen(INTERPRETER_PORT) if plan.interpreter else None
    rootfs.enter(plan.root, plan.scratch)
    for fd in (*plan.root.layers, plan.root.disk):
        os.close(fd)
    return listener, door, meter


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))  # noqa: S104 - of the sandbox's own namespace
    listener.listen(LISTEN_BACKLOG)
    return listener


def _receive_start(channel: socket.socket) -> tuple[str, str]:
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
    if not message:
        os._exit(0)  # the launcher is gone: nobody will ever ask for this cell
    (config,) = descriptors
    try:
        size = min(os.fstat(config).st_size, _MAX_CONFIG)
        return message.decode(), os.pread(config, size, 0).decode()
    finally:
        os.close(config)


def _write_names(hostname: str) -> None:
    """The files beside the host name itself, which the launcher sets."""
    overwrite("/etc/hostname", f"{hostname}\n")
    overwrite("/etc/hosts", f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n")


def _report_up(channel: socket.socket) -> None:
    channel.send(UP)
    channel.close()
