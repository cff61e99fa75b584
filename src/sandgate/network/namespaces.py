"""Network namespaces of a thread: making one, and always finding the way back."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def current_namespace() -> int:
    """A descriptor of the network namespace that the calling thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def inside(namespace: int) -> Iterator[None]:
    """Run the block in the network namespace of this descriptor. Raises OSError."""
    home = current_namespace()
    try:
        _enter(namespace)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


@contextmanager
def fresh_namespace() -> Iterator[int]:
    """Run the block in a new network namespace; yields a descriptor of it, for the caller to close.

    If the block fails, it is closed here, and with it the namespace. Raises OSError.
    """
    home = current_namespace()
    try:
        _check(_libc.unshare(_CLONE_NEWNET), "unshare the network namespace")
        try:
            namespace = current_namespace()
            try:
                yield namespace
            except BaseException:
                os.close(namespace)
                raise
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(namespace: int) -> None:
    _check(_libc.setns(namespace, _CLONE_NEWNET), "enter a network namespace")


def _check(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {what}: {os.strerror(code)}")
