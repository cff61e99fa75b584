"""The filter, loaded for real in a child process."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from sandgate.runtime import linux
from sandgate.runtime.seccomp import compile_filter

UNSHARE, CLONE, KEYCTL, BPF, IO_URING_SETUP = 272, 56, 250, 321, 425
PTRACE, PERSONALITY, SOCKET, CLONE3, GETPID, MOUNT = 101, 135, 41, 435, 39, 165
IO_SETUP, KCMP, SET_TID_ADDRESS, SOCKETPAIR = 206, 312, 218, 53
CLONE_NEWUSER = 0x10000000
SOCK_CLOEXEC = 0o2000000
PROGRAM = compile_filter()


def errno_of(number: int, *arguments: int) -> int:
    """What the system call fails with under the filter; 0 if it succeeds."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            linux.load_seccomp(PROGRAM)
            result = libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
            status = ctypes.get_errno() if result < 0 else 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are x86_64's")
@pytest.mark.parametrize(
    ("call", "arguments", "expected"),
    [
        (GETPID, (), 0),
        (UNSHARE, (CLONE_NEWUSER,), errno.EPERM),
        (CLONE, (CLONE_NEWUSER | 17, 0, 0, 0, 0), errno.ENOSYS),
        (CLONE3, (0, 0), errno.ENOSYS),
        (MOUNT, (0, 0, 0, 0, 0), errno.EPERM),
        (KEYCTL, (0, 0), errno.EPERM),
        (BPF, (0, 0, 0), errno.EPERM),
        (IO_URING_SETUP, (1, 0), errno.EPERM),
        (PERSONALITY, (0xFFFFFFFF,), 0),
        (PERSONALITY, (0x400000,), errno.ENOSYS),
        (SOCKET, (40, 1, 0), errno.ENOSYS),  # AF_VSOCK
        (SOCKET, (38, 5, 0), errno.ENOSYS),  # AF_ALG
        (SOCKET, (17, 3, 0), errno.ENOSYS),  # AF_PACKET
        (SOCKET, (2, 1, 0), 0),
        (SOCKET, (2, 1 | SOCK_CLOEXEC, 6), 0),
        (SOCKET, (2, 2 | SOCK_CLOEXEC, 17), 0),
        (SOCKET, (10, 2, 0), 0),
        (SOCKET, (1, 5, 0), 0),
        (SOCKET, (2, 1, 132), errno.ENOSYS),  # SCTP
        (SOCKET, (2, 5, 0), errno.ENOSYS),  # SCTP as well
        (SOCKET, (2, 6, 0), errno.ENOSYS),  # DCCP
        (SOCKET, (2, 2, 136), errno.ENOSYS),  # UDP-Lite
        (SOCKET, (16, 3, 0), 0),  # NETLINK_ROUTE
        (SOCKET, (16, 3, 4), 0),  # NETLINK_SOCK_DIAG
        (SOCKET, (16, 2, 15), errno.ENOSYS),  # NETLINK_KOBJECT_UEVENT
        (SOCKET, (16, 3, 16), errno.ENOSYS),  # NETLINK_GENERIC
        (SOCKET, (16, 3, 12), errno.ENOSYS),  # NETLINK_NETFILTER
        (SOCKETPAIR, (30, 5, 0, 0), errno.ENOSYS),  # AF_TIPC
        (SOCKETPAIR, (1, 1, 0, 0), errno.EFAULT),
        (SET_TID_ADDRESS, (0,), 0),
        (IO_SETUP, (1, 0), errno.ENOSYS),
        (KCMP, (0, 0, 0), errno.EPERM),
        (9999, (), errno.ENOSYS),
    ],
)
def test_calls_under_the_filter(call: int, arguments: tuple[int, ...], expected: int) -> None:
    assert errno_of(call, *arguments) == expected


def test_processes_and_threads_can_still_be_made() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            linux.load_seccomp(PROGRAM)
            import threading

            thread = threading.Thread(target=lambda: None)
            thread.start()
            thread.join()
            status = os.spawnv(os.P_WAIT, "/bin/true", ["true"])
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
