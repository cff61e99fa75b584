"""Gives up root for good: user, groups, capabilities, and the means to get them back."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass

_PR_SET_DUMPABLE = 4
_PR_CAPBSET_READ = 23
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and group a process is to run as."""

    uid: int
    gid: int

    @classmethod
    def of(cls, user: str | None) -> Identity:
        """Look `user` up; None means to stay who we are. Raises ValueError if there is none."""
        if user is None:
            return cls(os.getuid(), os.getgid())
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            raise ValueError(
                f"user: there is no user {user!r}; create it (useradd --system {user}) "
                "or set service_user to one that exists"
            ) from None
        return cls(entry.pw_uid, entry.pw_gid)


def drop_privileges(identity: Identity) -> None:
    """Become `identity` with no capability, no core dumps and no way back. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient set")
    _empty_bounding_set(libc.prctl)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(identity.gid, identity.gid, identity.gid)
        os.setresuid(identity.uid, identity.uid, identity.uid)
    elif (os.getuid(), os.getgid()) != (identity.uid, identity.gid):
        raise PermissionError("only root can change to another user")
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(libc.capset(header, bytes(24)), "capset")
    _check(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "dumpable")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _empty_bounding_set(prctl: Callable[..., int]) -> None:
    """Drop each capability the kernel knows; without CAP_SETPCAP there is nothing to lose."""
    capability = 0
    while (held := prctl(_PR_CAPBSET_READ, capability, 0, 0, 0)) >= 0:
        if held and os.geteuid() == 0:
            _check(prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), f"bounding set ({capability})")
        capability += 1


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"dropping privileges, {what}: {os.strerror(error)}")
