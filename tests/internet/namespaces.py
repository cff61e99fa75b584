"""Network namespaces for tests: made, wired and removed."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_DIRECTORY = Path("/run/netns")
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> str:
    """Run a command and return its output. Raises RuntimeError with what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def create(name: str) -> None:
    """Make a named namespace with its loopback up."""
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "set", "lo", "up")


def delete(name: str) -> None:
    """Remove the name (the namespace goes with its last process). Does nothing if there is none."""
    if (_DIRECTORY / name).exists():
        run("ip", "netns", "delete", name)


def join(name: str) -> None:
    """Move the calling thread, and what it starts from now on, into the namespace.

    An absolute path to a namespace's file will do for a name.
    """
    _setns(_DIRECTORY / name)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run a block in the namespace: sockets made there belong to it for good."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        join(name)
        try:
            yield
        finally:
            if _libc.setns(home, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot return to the network namespace")
    finally:
        os.close(home)


def set_sysctls(name: str, **values: int) -> None:
    """Set `net.` sysctls there; `__` stands for a dot, e.g. `ipv4__ip_forward=1`."""
    with inside(name):
        for key, value in values.items():
            path = Path("/proc/sys/net") / key.replace("__", "/")
            path.write_text(str(value))


def _setns(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {path}")
    finally:
        os.close(descriptor)
