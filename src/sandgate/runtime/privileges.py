"""What a process gives up, last of all, to be inside a sandbox. Used by all that enter one."""

from __future__ import annotations

import os
import resource

from sandgate.runtime import linux

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

_MAX_FILES = 65536


def drop_powers(users: int, seccomp: bytes) -> None:
    """Become root of the user namespace at `users`, which is closed, and nobody elsewhere.

    :param seccomp: the filter, as raw BPF.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_MAX_FILES, hard), min(_MAX_FILES, hard)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    linux.setns(users, linux.CLONE_NEWUSER)
    os.close(users)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    # Without no_new_privs, which would stop sudo: loading a filter takes CAP_SYS_ADMIN then.
    linux.load_seccomp(seccomp)
    linux.limit_capabilities(CAPABILITIES)
    linux.set_dumpable(False)
