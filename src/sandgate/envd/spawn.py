"""Start one command as one user.

`posix_spawn` does not copy the daemon's page tables: 0.5 ms were measured where `fork` takes 3.
It can change neither the user nor the directory, but the child inherits both, so the daemon takes
them on for that moment. It keeps user 0 as its saved identity, which exec drops for the child.
There is only one thread, so nothing else happens meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import stat
import struct
import termios
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from sandgate.envd.users import User

# From ioctl_tty(2).
_TIOCGPTN = 0x80045430
_TIOCSPTLCK = 0x40045431
_EXIT_LOST = 71
_DEFAULT_ACTIONS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}

FileActions = list[tuple[int, int, int] | tuple[int, int, str, int, int]]


class Channel(StrEnum):
    """Where output comes from. The value is the key on the wire."""

    STDOUT = "stdout"
    STDERR = "stderr"
    PTY = "pty"


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Size of a terminal in characters."""

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, as whom and where."""

    argv: list[str]
    env: Mapping[str, str]
    cwd: str
    user: User
    terminal: TerminalSize | None
    """Run on a pseudo-terminal of this size."""
    stdin: bool
    """Without a terminal: whether standard input is a pipe, else /dev/null."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """A started command. The descriptors are the caller's: non-blocking, not inherited."""

    pid: int
    input_fd: int | None
    output_fds: dict[int, Channel]


class SpawnError(Exception):
    """The command could not be set up; the text says which step failed and why."""


def spawn(command: Command, oom_score_adj: int) -> Spawned:
    """Start `command` in a session of its own.

    :param oom_score_adj: makes the kernel end commands before the daemon when memory runs out.
    :raises SpawnError: if the user, the directory or the program cannot be had.
    :raises OSError: if descriptors or processes have run out.
    """
    with contextlib.ExitStack() as child_ends, contextlib.ExitStack() as own_ends:
        if command.terminal is not None:
            spawned, actions = _open_terminal(command, command.terminal, own_ends)
        else:
            spawned, actions = _open_pipes(command.stdin, own_ends, child_ends)
        with _identity_of(command):
            pid = _execute(command, actions)
        own_ends.pop_all()

    # Not before exec: until then the file belongs to the host's root. It fails if the command is
    # over already, or is a program that nobody may read: then it keeps the daemon's score.
    with contextlib.suppress(OSError):
        fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % oom_score_adj)
        finally:
            os.close(fd)
    return replace(spawned, pid=pid)


def set_terminal_size(fd: int, size: TerminalSize) -> None:
    """Resize a pseudo-terminal; the foreground job gets SIGWINCH.

    :param fd: either end of it.
    """
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _open_terminal(
    command: Command, size: TerminalSize, own: contextlib.ExitStack
) -> tuple[Spawned, FileActions]:
    flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
    master = os.open("/dev/ptmx", flags)
    own.callback(os.close, master)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, bytes(4)))
    set_terminal_size(master, size)
    path = f"/dev/pts/{number}"
    os.chown(path, command.user.uid, -1, follow_symlinks=False)
    # Opened by the child, which leads a new session: so it becomes its controlling terminal.
    actions: FileActions = [(os.POSIX_SPAWN_OPEN, 0, path, os.O_RDWR, 0)]
    actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
    return Spawned(0, master, {master: Channel.PTY}), actions


def _open_pipes(
    stdin: bool, own: contextlib.ExitStack, child: contextlib.ExitStack
) -> tuple[Spawned, FileActions]:
    def pipe(own_end: int) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        own.callback(os.close, ends[own_end])
        child.callback(os.close, ends[1 - own_end])
        os.set_blocking(ends[own_end], False)
        return ends[own_end], ends[1 - own_end]

    out, child_out = pipe(0)
    err, child_err = pipe(0)
    actions: FileActions = []
    input_fd = None
    if stdin:
        input_fd, child_in = pipe(1)
        actions.append((os.POSIX_SPAWN_DUP2, child_in, 0))
    else:
        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
    actions.append((os.POSIX_SPAWN_DUP2, child_out, 1))
    actions.append((os.POSIX_SPAWN_DUP2, child_err, 2))
    return Spawned(0, input_fd, {out: Channel.STDOUT, err: Channel.STDERR}), actions


@contextlib.contextmanager
def _identity_of(command: Command) -> Iterator[None]:
    """Be the command's user in its directory, with no more rights than that user."""
    user = command.user
    step = f"become user '{user.name}'"
    groups = os.getgroups()
    try:
        os.setgroups(user.groups or (user.gid,))
        os.setresgid(user.gid, user.gid, 0)
        os.setresuid(user.uid, user.uid, 0)
        step = f"enter directory '{command.cwd}'"
        os.chdir(command.cwd)
        step = ""
        yield
    except OSError as exc:
        if not step:
            raise
        raise SpawnError(f"cannot {step}: {exc.strerror}") from exc
    finally:
        try:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups(groups)
            os.chdir("/")
        except OSError:
            # A daemon that is someone else would work with the wrong rights from now on.
            os._exit(_EXIT_LOST)


def _execute(command: Command, actions: FileActions) -> int:
    program = command.argv[0]
    for path in _candidates(program, command.env):
        try:
            return os.posix_spawn(
                path,
                command.argv,
                command.env,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                # Python ignores some signals, and exec would keep that.
                setsigdef=_DEFAULT_ACTIONS,
            )
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.ENOMEM):
                raise
            raise SpawnError(f"cannot execute '{path}': {exc.strerror}") from exc
    raise SpawnError(f"cannot execute '{program}': not found in PATH")


def _candidates(program: str, env: Mapping[str, str]) -> Iterator[str]:
    """Paths at which to try a program, as execvp(3) would find it."""
    if "/" in program:
        yield program
        return
    for directory in env.get("PATH", os.defpath).split(":"):
        path = f"{directory or '.'}/{program}"
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK):
                yield path


def reset_signals() -> None:
    """Give every signal its default action, whatever the launcher did."""
    signal.set_wakeup_fd(-1)
    for number in _DEFAULT_ACTIONS:
        signal.signal(number, signal.SIG_DFL)
