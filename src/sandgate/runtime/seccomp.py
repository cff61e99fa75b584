"""The system calls a sandbox may make, compiled once to BPF by libseccomp.

An allow-list with Docker's default profile as the reference (docs/security.md has what differs).
What is known and not allowed fails with EPERM; what is unknown (newer than this list), or better
taken for that, with ENOSYS, so that C libraries and programs fall back.
"""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from dataclasses import dataclass

_ACT_ALLOW = 0x7FFF0000
_ATTR_BADARCH = 2
_ATTR_OPTIMIZE = 8
_CMP_EQ = 4
_CMP_MASKED_EQ = 7
_NEW_NAMESPACES = 0x7E020080
"""Every CLONE_NEW* flag that clone(2) takes (time namespaces included)."""

_FILES = """
    access faccessat faccessat2 chdir fchdir chmod fchmod fchmodat fchmodat2 chown chown32 fchown
    fchown32 fchownat lchown lchown32 close close_range copy_file_range creat dup dup2 dup3
    fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fcntl fcntl64 fdatasync flock fstat fstat64
    fstatat64 newfstatat fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents
    getdents64 getxattr getxattrat lgetxattr fgetxattr listxattr listxattrat llistxattr flistxattr
    removexattr removexattrat lremovexattr fremovexattr setxattr setxattrat lsetxattr fsetxattr
    inotify_add_watch inotify_init inotify_init1 inotify_rm_watch ioctl link linkat lseek _llseek
    lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at open openat openat2 pipe pipe2
    pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename
    renameat renameat2 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink
    symlinkat sync sync_file_range sync_file_range2 syncfs tee truncate truncate64 umask unlink
    unlinkat utime utimensat utimes vmsplice write writev cachestat
"""
_MEMORY = """
    brk madvise membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2
    mprotect mremap msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect
    process_mrelease remap_file_pages map_shadow_stack mseal
"""
_PROCESSES = """
    alarm arch_prctl capget capset execve execveat exit exit_group fork vfork futex futex_time64
    futex_waitv futex_wait futex_wake futex_requeue get_robust_list set_robust_list get_thread_area
    set_thread_area getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32
    getitimer setitimer getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid
    getresuid32 getrlimit ugetrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set
    kill landlock_add_rule landlock_create_ruleset landlock_restrict_self nanosleep pause pidfd_open
    pidfd_send_signal prctl prlimit64 ptrace process_vm_readv process_vm_writev restart_syscall rseq
    rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend
    rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr
    sched_setparam sched_setscheduler sched_yield seccomp set_tid_address setfsgid setfsgid32
    setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid
    setuid setuid32 sigaltstack signalfd signalfd4 sigprocmask sigreturn sysinfo tgkill time times
    tkill uname wait4 waitid waitpid chroot uretprobe
"""
_TIME_AND_EVENTS = """
    clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 gettimeofday getrandom poll ppoll
    ppoll_time64 pselect6 pselect6_time64 select _newselect timer_create timer_delete
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_IPC_AND_SOCKETS = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg
    recvmmsg_time64 recvmsg send sendmmsg sendmsg sendto setsockopt shutdown
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop
    semtimedop_time64 shmat shmctl shmdt shmget
"""
_REFUSED = """
    acct add_key bpf clock_adjtime clock_settime create_module delete_module fanotify_init
    fanotify_mark finit_module fsconfig fsmount fsopen fspick get_mempolicy init_module
    io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load
    keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl
    open_by_handle_at open_tree perf_event_open pidfd_getfd pivot_root process_madvise quotactl
    quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname
    setns settimeofday stime swapoff swapon sysfs syslog umount umount2 unshare uselib userfaultfd
    ustat vhangup vm86 vm86old adjtimex clock_adjtime64
"""
_KIND_OF_SOCKET = 0xF
"""The bits of socket(2)'s second argument that are no flags."""
_SOCKETS: tuple[tuple[int, int | None, tuple[int, ...] | None], ...] = (
    (1, None, None),  # AF_UNIX
    # AF_INET, AF_INET6: streams of TCP and MPTCP, datagrams of UDP and ICMP. Other protocols may
    # make the kernel load a module. Raw ones it refuses by itself, as programs expect.
    *((family, 1, (0, 6, 262)) for family in (2, 10)),
    *((family, 2, (0, 1, 17, 58)) for family in (2, 10)),
    *((family, 3, None) for family in (2, 10)),
    # AF_NETLINK: routes, sockets' state, audit (sudo takes its refusal by the kernel, but not its
    # absence). In a network namespace of the machine's user namespace, device events would tell
    # of the machine's devices, and so of other sandboxes.
    (16, None, (0, 4, 9)),
)
"""Family, kind, and protocols; None: any."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    names: tuple[str, ...]
    action: int
    comparisons: tuple[tuple[int, int, int, int], ...] = ()
    """(argument, operator, a, b); all must hold."""


def _fail(number: int) -> int:
    return 0x00050000 | number


def _rules() -> list[_Rule]:
    allowed = " ".join((_FILES, _MEMORY, _PROCESSES, _TIME_AND_EVENTS, _IPC_AND_SOCKETS))
    rules = [
        _Rule(tuple(allowed.split()), _ACT_ALLOW),
        _Rule(tuple(_REFUSED.split()), _fail(errno.EPERM)),
        # clone3 passes its flags in memory, where no filter sees them; ENOSYS makes C libraries
        # use clone, whose flags are seen.
        _Rule(("clone",), _ACT_ALLOW, ((0, _CMP_MASKED_EQ, _NEW_NAMESPACES, 0),)),
    ]
    rules.append(_Rule(("socketpair",), _ACT_ALLOW, ((0, _CMP_EQ, 1, 0),)))  # AF_UNIX
    for family, kind, protocols in _SOCKETS:
        wanted: tuple[tuple[int, int, int, int], ...] = ((0, _CMP_EQ, family, 0),)
        if kind is not None:
            wanted += ((1, _CMP_MASKED_EQ, _KIND_OF_SOCKET, kind),)
        rules += (
            _Rule(
                ("socket",), _ACT_ALLOW, wanted if one is None else (*wanted, (2, _CMP_EQ, one, 0))
            )
            for one in protocols or (None,)
        )
    rules += [
        _Rule(("personality",), _ACT_ALLOW, ((0, _CMP_EQ, value, 0),)) for value in _PERSONALITIES
    ]
    return rules


def compile_filter() -> bytes:
    """The filter as raw BPF for this machine. Raises OSError if libseccomp is missing or fails."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_fail(errno.ENOSYS))))
    if not context:
        raise OSError("libseccomp: seccomp_init failed")
    try:
        _check(library.seccomp_attr_set(context, _ATTR_BADARCH, _fail(errno.ENOSYS)), "bad arch")
        library.seccomp_attr_set(context, _ATTR_OPTIMIZE, 2)  # a binary tree; older ones lack it
        for rule in _rules():
            for name in rule.names:
                number = library.seccomp_syscall_resolve_name(name.encode())
                # Below zero: not a call of this architecture, or unknown to this libseccomp.
                if number >= 0:
                    _add(library, context, rule, number, name)
        with tempfile.TemporaryFile() as file:
            _check(library.seccomp_export_bpf(context, file.fileno()), "export")
            return os.pread(file.fileno(), 1 << 20, 0)
    finally:
        library.seccomp_release(context)


def _add(
    library: ctypes.CDLL, context: ctypes.c_void_p, rule: _Rule, number: int, name: str
) -> None:
    comparisons = (_Comparison * max(1, len(rule.comparisons)))(
        *(_Comparison(*comparison) for comparison in rule.comparisons)
    )
    action = ctypes.c_uint32(rule.action)
    _check(
        library.seccomp_rule_add_array(context, action, number, len(rule.comparisons), comparisons),
        name,
    )


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, f"libseccomp: {what}: {os.strerror(-result)}")
