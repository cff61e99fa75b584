"""Thin, typed bindings of the system calls that Python does not offer. No policy here.

Every function raises OSError with the call's name on failure. `PyDLL` keeps the interpreter lock
during the call: these calls are short, and the launcher forks between them.
"""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MNT_DETACH = 2

MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
_MOUNT_ATTR_IDMAP = 0x00100000

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 4
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_PR_SET_CHILD_SUBREAPER = 36

# System calls without a C library wrapper. These were added after the numbers were unified, so
# they are the same on every architecture.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_FSOPEN = 430
_SYS_FSCONFIG = 431
_SYS_FSMOUNT = 432
_SYS_MOUNT_SETATTR = 442
_SYS_CLOSE_RANGE = 436
_SYS_PIDFD_GETFD = 438
# These two are older and differ between architectures.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}

_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG = 0
_FSCONFIG_SET_STRING = 1
_FSCONFIG_CMD_CREATE = 6

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), call)
    return result


def unshare(flags: int) -> None:
    """Move the caller into new namespaces (for CLONE_NEWPID: its next children)."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Join the namespace that `fd` refers to."""
    _check(_libc.setns(fd, kind), "setns")


def mount(
    source: str | None, target: str, kind: str | None, flags: int = 0, data: str = ""
) -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            source.encode() if source else None,
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            data.encode() if data else None,
        ),
        f"mount {target}",
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), f"umount {target}")


def exchange(one: Path, other: Path) -> None:
    """Let two files have each other's names, from one moment to the next."""
    arguments = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    _check(_libc.renameat2(*arguments), "renameat2")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make `new_root` the root of this mount namespace."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_syscall(number, new_root.encode(), put_old.encode()), "pivot_root")


def clone_mount(path: Path, userns: int) -> int:
    """A detached copy of the tree at `path`, its owners mapped by `userns`. Returns its fd."""
    fd = _check(
        _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | os.O_CLOEXEC),
        f"open_tree {path}",
    )
    try:
        map_owners(fd, userns)
    except OSError:
        os.close(fd)
        raise
    return fd


def map_owners(mount: int, userns: int) -> None:
    """Map the owners of files in a mount that is not attached yet by `userns`."""
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, userns)
    _check(
        _syscall(_SYS_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, attributes, len(attributes)),
        "mount_setattr",
    )


def attach_mount(fd: int, target: str) -> None:
    """Attach a detached mount at `target`."""
    _check(
        _syscall(_SYS_MOVE_MOUNT, fd, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH),
        f"move_mount {target}",
    )


def create_mount(kind: str, source: str, options: tuple[str, ...], attributes: int) -> int:
    """Mount a file system without attaching it anywhere; it lives as long as the returned fd."""
    fs = _check(_syscall(_SYS_FSOPEN, kind.encode(), _FSOPEN_CLOEXEC), f"fsopen {kind}")
    try:
        _check(
            _syscall(_SYS_FSCONFIG, fs, _FSCONFIG_SET_STRING, b"source", source.encode(), 0),
            f"fsconfig {source}",
        )
        for option in options:
            _check(
                _syscall(_SYS_FSCONFIG, fs, _FSCONFIG_SET_FLAG, option.encode(), None, 0),
                f"fsconfig {option}",
            )
        _check(_syscall(_SYS_FSCONFIG, fs, _FSCONFIG_CMD_CREATE, None, None, 0), f"mount {source}")
        return _check(_syscall(_SYS_FSMOUNT, fs, _FSMOUNT_CLOEXEC, attributes), f"fsmount {source}")
    finally:
        os.close(fs)


def mount_proc() -> int:
    """A proc file system of this process's own, attached nowhere, of its pid namespace."""
    return create_mount("proc", "proc", (), 0)


def set_hostname(name: str) -> None:
    """Set the host name of this UTS namespace."""
    encoded = name.encode()
    _check(_libc.sethostname(encoded, len(encoded)), "sethostname")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor above 2 that is not in `keep`."""
    first = 3
    for fd in [*sorted(fd for fd in keep if fd >= 3), 0xFFFF_FFFF]:
        if fd > first:
            last = fd - 1 if fd != 0xFFFF_FFFF else fd
            _check(
                _syscall(_SYS_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0),
                "close_range",
            )
        first = fd + 1


def set_dumpable(value: bool) -> None:
    """Whether others may ptrace this process and read its memory through /proc."""
    _check(_libc.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0), "prctl")


def die_with_parent() -> None:
    """Get SIGKILL when the parent ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "prctl")


def sync_fs(fd: int) -> None:
    """Write everything of the file system at `fd` to its device."""
    _check(_libc.syncfs(fd), "syncfs")


def take_descriptor(process: int, number: int) -> int:
    """What the process of this pidfd has open as `number`, as a descriptor of ours."""
    return _check(_syscall(_SYS_PIDFD_GETFD, process, number, 0), "pidfd_getfd")


def become_subreaper() -> None:
    """Make orphaned descendants children of this process."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def keep_capabilities() -> None:
    """Let this process keep its capabilities when it becomes another user."""
    _check(_libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0), "prctl")


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63


def limit_capabilities(keep: frozenset[int]) -> None:
    """Reduce the bounding, permitted and effective sets to `keep`; the others become empty."""
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl")
    for capability in range(_LAST_CAPABILITY + 1):
        # EINVAL: the kernel does not know this capability, so neither does anyone else.
        if capability not in keep and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            break
    mask = sum(1 << capability for capability in keep)
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)(
        _CapData(mask & 0xFFFF_FFFF, mask & 0xFFFF_FFFF, 0),
        _CapData(mask >> 32, mask >> 32, 0),
    )
    _check(_libc.capset(ctypes.byref(header), data), "capset")


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def load_seccomp(program: bytes) -> None:
    """Install a seccomp filter (raw BPF). Needs CAP_SYS_ADMIN in the current user namespace."""
    buffer = ctypes.create_string_buffer(program, len(program))
    argument = _FilterProgram(len(program) // 8, ctypes.addressof(buffer))
    number = _SYS_SECCOMP[os.uname().machine]
    _check(_syscall(number, 1, 0, ctypes.byref(argument)), "seccomp")
