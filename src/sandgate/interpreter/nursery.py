"""The first process of an interpreter: forks its server and its Python kernels.

A process with threads and sockets of ZeroMQ cannot be forked safely; this one has neither. It ends
when the server ends, and with it all kernels end; the launcher then waits for the next connection.
Should it be killed, the server tells its clients, and ends as well.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
from collections.abc import Callable
from typing import NoReturn

from sandgate.interpreter import python_kernel, server
from sandgate.runtime import linux

_MAX_MESSAGE = 1 << 20


def run(door: int) -> NoReturn:
    """Fork a server for the listening socket `door`, then kernels as it asks. Never returns."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    server_pid = os.fork()
    if server_pid == 0:
        ours.close()
        _child(lambda: server.run(door, theirs), parent)
    theirs.close()
    os.close(door)
    nursery = _Nursery(ours)
    nursery.watch(server_pid, None)
    nursery.serve()


class _Nursery:
    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._selector = selectors.DefaultSelector()
        self._selector.register(channel, selectors.EVENT_READ, self._request)

    def serve(self) -> NoReturn:
        while True:
            for key, _ in self._selector.select():
                key.data()

    def watch(self, pid: int, kernel: int | None) -> None:
        """Tell of the end of a kernel; end with the server, which is the one without a number."""
        pidfd = os.pidfd_open(pid)

        def ended() -> None:
            self._selector.unregister(pidfd)
            os.close(pidfd)
            _, status = os.waitpid(pid, 0)
            if kernel is None:
                os._exit(0)  # the kernels have asked to die with this process
            self._channel.send(
                json.dumps({"ended": kernel, "status": os.waitstatus_to_exitcode(status)}).encode()
            )

        self._selector.register(pidfd, selectors.EVENT_READ, ended)

    def _request(self) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._channel, _MAX_MESSAGE, 4)
        if not message:
            os._exit(0)
        request = json.loads(message)
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            self._channel.send(json.dumps({"id": request["id"], "error": str(error)}).encode())
        else:
            if pid == 0:
                spec = python_kernel.Spec(**request["spec"])
                _child(lambda: python_kernel.run(spec, *descriptors), parent, set(descriptors))
            self.watch(pid, request["id"])
            self._channel.send(json.dumps({"id": request["id"], "pid": pid}).encode())
        finally:
            for fd in descriptors:
                os.close(fd)


def _child(work: Callable[[], NoReturn], parent: int, keep: set[int] | None = None) -> NoReturn:
    """:param keep: of a kernel: its descriptors. It ends with its parent."""
    try:
        os.setsid()
        if keep is not None:
            linux.close_all_but(keep)
            linux.die_with_parent()
            if os.getppid() != parent:
                os._exit(1)
        work()
    finally:
        os._exit(1)
