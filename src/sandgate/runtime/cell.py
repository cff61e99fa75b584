"""The inside of a sandbox, from the launcher's fork to envd. Runs in the child only.

A cell is a sandbox that is not yet anybody's: namespaces, mounts and limits stand, and its process
waits. Given a name and a configuration it drops what it can no longer need (the machine's
identity, capabilities, system calls) and becomes envd.
"""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from sandgate import envd
from sandgate.runtime import linux, rootfs
from sandgate.runtime.meters import Meter

ENVD_PORT = 49983
"""Where E2B's SDKs expect the daemon (wire contract, section 0)."""

READY = b"ready"
UP = b"up"
FAILED = b"failed:"
MAX_MESSAGE = 4096

_LISTEN_BACKLOG = 1024
_MAX_CONFIG = 4 << 20
_MAX_FILES = 65536
_OOM_SCORE = "300"

CAPABILITIES = frozenset(
    {
        0,  # CHOWN
        1,  # DAC_OVERRIDE
        3,  # FOWNER
        4,  # FSETID
        5,  # KILL
        6,  # SETGID
        7,  # SETUID
        8,  # SETPCAP
        10,  # NET_BIND_SERVICE
        18,  # SYS_CHROOT
        27,  # MKNOD
        29,  # AUDIT_WRITE
        31,  # SETFCAP
    }
)
"""Docker's default set without NET_RAW. They count in the sandbox's own user namespace only."""


@dataclass(frozen=True, slots=True)
class CellPlan:
    """What the child needs, all of it opened by the launcher."""

    channel: socket.socket
    """SEQPACKET to the launcher: READY, then (hostname, descriptor) comes in, then UP."""
    join_cgroups: Sequence[str]
    open_meter: Callable[[], Meter]
    """Opens the sandbox's own figures, which lie where it cannot look."""
    network: int
    users: int
    root: rootfs.RootFs
    scratch: str
    seccomp: bytes
    daemon: envd.Blank

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
        listener, meter = _enter(plan)
        _drop_powers(plan)
        _write_names("sandbox")
        standby = envd.Standby(plan.daemon, listener, meter.read)
        plan.channel.send(READY)
        hostname, config = _receive_start(plan.channel)
        _write_names(hostname)
        configuration = envd.EnvdConfig.from_json(config)
        standby.serve(configuration, lambda: _report_up(plan.channel))
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
    linux.close_all_but(plan.descriptors())
    os.setsid()
    # The launcher's may be low: where the machine is out of memory, sandboxes come first.
    Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)


def _enter(plan: CellPlan) -> tuple[socket.socket, Meter]:
    for path in plan.join_cgroups:
        Path(path).write_text("0")
    meter = plan.open_meter()
    linux.unshare(
        linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWIPC | linux.CLONE_NEWCGROUP
    )
    linux.setns(plan.network, linux.CLONE_NEWNET)
    os.close(plan.network)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", ENVD_PORT))  # noqa: S104 - of the sandbox's own namespace
    listener.listen(_LISTEN_BACKLOG)
    rootfs.enter(plan.root, plan.scratch)
    for fd in (*plan.root.layers, plan.root.disk):
        os.close(fd)
    return listener, meter


def _receive_start(channel: socket.socket) -> tuple[str, str]:
    message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, 1)
    if not message:
        os._exit(0)  # the launcher is gone: nobody will ever ask for this cell
    (config,) = descriptors
    with os.fdopen(config, "rb") as file:
        file.seek(0)
        return message.decode(), file.read(_MAX_CONFIG).decode()


def _drop_powers(plan: CellPlan) -> None:
    """Give up all that came from the launcher and a sandbox must not have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MAX_FILES, hard), min(_MAX_FILES, hard)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.setns(plan.users, linux.CLONE_NEWUSER)
    os.close(plan.users)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Without no_new_privs, which would stop sudo: loading a filter takes CAP_SYS_ADMIN then.
    linux.load_seccomp(plan.seccomp)
    linux.limit_capabilities(CAPABILITIES)
    linux.set_dumpable(False)


def _write_names(hostname: str) -> None:
    """The files beside the host name itself, which the launcher sets."""
    Path("/etc/hostname").write_text(f"{hostname}\n")
    Path("/etc/hosts").write_text(f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n")


def _report_up(channel: socket.socket) -> None:
    channel.send(UP)
    channel.close()
