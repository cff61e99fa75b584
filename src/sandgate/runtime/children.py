"""Processes of the launcher's that run another module of this package, with a channel to each.

They are started afresh, not forked: what they fork has less memory to share than the launcher's,
and nothing in it that it has no use for.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys

from sandgate.runtime import linux

_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Child:
    """One such process, seen from its parent."""

    def __init__(self, module: str) -> None:
        """Run `module`, which is to call :func:`join` first of all. Raises OSError."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                end = theirs.fileno()
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-m", module, str(end), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(end,),
                    env={**_ENVIRONMENT, "LC_ALL": "C.UTF-8"},
                )
        except OSError:
            self.channel.close()
            raise

    def end(self) -> None:
        """Close the channel, which ends the process, and wait for that."""
        self.channel.close()
        self._process.wait()


def join() -> socket.socket:
    """In the child: the channel to the parent, whose end is this process's end."""
    end, parent = (int(word) for word in sys.argv[1:])
    linux.die_with_parent()
    if os.getppid() != parent:
        sys.exit(1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)
    logging.basicConfig(level=logging.INFO, format="launcher %(levelname)s %(message)s")
    os.set_inheritable(end, False)
    return socket.socket(fileno=end)


def first_message(channel: socket.socket, most: int) -> bytes:
    """What the parent tells this process first; ends it if the parent has gone instead."""
    message = channel.recv(most)
    if not message:
        sys.exit(0)
    return message


def seal_imports() -> None:
    """Import nothing from here on, in this process and in what is forked from it.

    In a sandbox, where these directories do not exist, nothing of the sandbox's may be imported in
    their place.
    """
    sys.path.clear()
    sys.path_importer_cache.clear()
