"""What a program sees of the machine it runs on, told in JSON. Runs in a sandbox, alone."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

_SYSTEM_CALLS = {
    # Number on x86-64, and arguments that would do no harm if it worked.
    "acct": (163, 0),
    "add_key": (248, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "clone3": (435, 0, 0),
    "fanotify_init": (300, 0, 0),
    "finit_module": (313, -1, 0, 0),
    "fsopen": (430, 0, 0),
    "init_module": (175, 0, 0, 0),
    "io_setup": (206, 1, 0),
    "io_uring_setup": (425, 0, 0),
    "iopl": (172, 3),
    "kcmp": (312, 1, 1, 0),
    "kexec_load": (246, 0, 0, 0),
    "keyctl": (250, 0, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "move_mount": (429, 0, 0, 0, 0, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "open_tree": (428, -100, 0, 0),
    "perf_event_open": (298, 0, 0, 0),
    "pidfd_getfd": (438, -1, 0, 0),
    "pivot_root": (155, 0, 0),
    "process_madvise": (440, -1, 0, 0, 0, 0),
    "quotactl": (179, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "setns": (308, -1, 0),
    "swapon": (167, 0, 0),
    "syslog": (103, 3, 0, 0),
    "umount2": (166, 0, 0),
    "unshare": (272, 0x10000000),
    "userfaultfd": (323, 0),
}
_REFUSED = (errno.EPERM, errno.ENOSYS)
_INIT_FILES = ("auxv", "environ", "fd", "io", "maps", "mem", "ns", "pagemap", "root", "stack")
_INIT_FILES_TO_WRITE = ("clear_refs", "comm", "mem", "oom_score_adj", "uid_map")
_PROTOCOLS = range(24)
"""Of netlink(7)."""


def main() -> None:
    """Print it."""
    print(
        json.dumps(
            {
                "calls": _permitted_calls(),
                "families": _families(),
                "netlink": _netlink(),
                "descriptors": _descriptors(),
                "init": [name for name in _INIT_FILES if _opens(f"/proc/1/{name}", os.O_RDONLY)],
                "init_to_write": [
                    name for name in _INIT_FILES_TO_WRITE if _opens(f"/proc/1/{name}", os.O_WRONLY)
                ],
                "traces_init": _trace(1),
                "mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
                "writable": _writable(),
                "devices": _device_nodes(),
                "priority_mutex": _priority_mutex(),
            }
        )
    )


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _permitted_calls() -> dict[str, int]:
    """Those that fail otherwise than by being refused, with the error; 0 for success."""
    found = {}
    for name, (number, *arguments) in _SYSTEM_CALLS.items():
        result = _libc().syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments))
        code = ctypes.get_errno() if result == -1 else 0
        if code not in _REFUSED:
            found[name] = code
    return found


def _families() -> list[int]:
    """Families of which a socket of some kind can be made."""
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET)
    return [family for family in range(64) if any(_socket(family, kind) for kind in kinds)]


def _netlink() -> list[int]:
    return [one for one in _PROTOCOLS if _socket(socket.AF_NETLINK, socket.SOCK_RAW, one)]


def _socket(*how: int) -> bool:
    try:
        socket.socket(*how).close()
    except OSError:
        return False
    return True


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the listing's own
            continue
    return found


def _opens(path: str, way: int) -> bool:
    try:
        os.close(os.open(path, way))
    except OSError:
        return False
    return True


def _trace(pid: int) -> bool:
    attach, detach = 16, 17
    ptrace = _libc().ptrace
    if ptrace(attach, pid, 0, 0) != 0:
        return False
    ptrace(detach, pid, 0, 0)
    return True


def _writable() -> list[str]:
    """Files below /proc/sys, /proc (of no process) and /sys that can be opened to be written."""
    found = []
    for top in ("/proc", "/sys"):
        for directory, names, files in os.walk(top):
            if directory == "/proc":
                names[:] = [name for name in names if not name.isdigit() and "self" not in name]
            for name in files:
                path = f"{directory}/{name}"
                if not os.path.islink(path) and _opens(path, os.O_WRONLY | os.O_NONBLOCK):
                    found.append(path)
    return found


def _device_nodes() -> list[str]:
    """Device nodes anywhere, and those that can be made."""
    found = []
    for directory, names, files in os.walk("/"):
        if directory == "/":
            names[:] = [name for name in names if name not in ("proc", "sys")]
        for name in files:
            path = f"{directory}/{name}"
            mode = os.lstat(path).st_mode & 0o170000
            if mode in (0o020000, 0o060000):
                found.append(path)
    for number, (kind, major, minor) in enumerate(((0o060000, 7, 0), (0o020000, 1, 1))):
        try:
            os.mknod(f"/tmp/node{number}", kind | 0o600, os.makedev(major, minor))
        except OSError:
            continue
        found.append(f"/tmp/node{number}")
    return found


def _priority_mutex() -> int:
    """Whether the kernel knows this thread by the number that the C library has for it."""
    libc: Any = _libc()
    attributes, mutex = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
    libc.pthread_mutexattr_init(attributes)
    libc.pthread_mutexattr_setprotocol(attributes, 1)  # PTHREAD_PRIO_INHERIT
    libc.pthread_mutex_init(mutex, attributes)
    return int(libc.pthread_mutex_lock(mutex) or libc.pthread_mutex_unlock(mutex))


main()
