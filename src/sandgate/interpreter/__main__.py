"""`python3 -m sandgate.interpreter`: the zygote. Its other side is `sandgate.runtime.zygote`."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys

from sandgate.interpreter import entry, nursery
from sandgate.runtime import linux
from sandgate.runtime.zygote import CODE, CONTROL_FD, MAX_MESSAGE, NAMESPACES, SECCOMP_FD

_LATE_IMPORTS = (
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.magics",
    "IPython.core.oinspect",
    "IPython.core.profiledir",
    "IPython.extensions.storemagic",
    "encodings.idna",
    "encodings.latin_1",
    "faulthandler",
    "ipykernel.compiler",
    "ipykernel.heartbeat",
    "ipykernel.subshell_manager",
    "pdb",
    "tornado.platform.asyncio",
    "unicodedata",
    "zmq.asyncio",
)
"""What the libraries import only when they first need it."""
_CAPABILITIES = frozenset(
    {
        6,  # SETGID
        7,  # SETUID
        18,  # SYS_CHROOT: to join a mount namespace
        21,  # SYS_ADMIN: to join any
    }
)
"""What entering a sandbox takes."""
_MAX_DESCRIPTORS = 64


def main() -> None:
    """Serve start requests until the launcher is gone."""
    with open(SECCOMP_FD, "rb") as file:
        file.seek(0)
        seccomp = file.read()
    own_pids = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    for name in _LATE_IMPORTS:
        importlib.import_module(name)
    # The package is the node's; in the sandbox it does not exist.
    sys.path[:] = [path for path in sys.path if path not in (CODE, "", "/")]
    sys.path_importer_cache.clear()
    os.environ.clear()
    linux.limit_capabilities(_CAPABILITIES)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the forks
    gc.collect()
    gc.freeze()  # what is there now is shared with every fork: collections must not touch it
    channel = socket.socket(fileno=CONTROL_FD)
    while True:
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, _MAX_DESCRIPTORS)
        if not message:
            return
        _serve(channel, json.loads(message)["id"], descriptors, own_pids, seccomp)


def _serve(
    channel: socket.socket, request: int, descriptors: list[int], own_pids: int, seccomp: bytes
) -> None:
    door, *opened = descriptors
    namespaces, groups = opened[: len(NAMESPACES)], opened[len(NAMESPACES) :]
    joined = dict(zip(NAMESPACES, namespaces, strict=True))
    plan = entry.Plan(door, joined, groups, seccomp, nursery.run)
    pid, failure, pidfds = 0, None, []
    try:
        pid = _fork(plan, own_pids)
        pidfds.append(os.pidfd_open(pid))
    except OSError as error:
        failure = str(error)
    answer = {"id": request, "error": failure, "pid": pid}
    for fd in descriptors:
        os.close(fd)
    socket.send_fds(channel, [json.dumps(answer).encode()], pidfds)
    for fd in pidfds:
        os.close(fd)


def _fork(plan: entry.Plan, own_pids: int) -> int:
    # Only the next child is put into the sandbox's; going back is what allows the one after it to
    # be put into another.
    linux.setns(plan.namespaces["pid"], linux.CLONE_NEWPID)
    try:
        pid = os.fork()
        if pid == 0:
            entry.run(plan)
    finally:
        linux.setns(own_pids, linux.CLONE_NEWPID)
    return pid


if __name__ == "__main__":
    main()
