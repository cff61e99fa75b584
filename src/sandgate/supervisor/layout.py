"""Where a node keeps what its supervisor makes, and with which permissions.

`run_dir` belongs to root, who makes each socket there before a component gives root up, for those
alone who are to connect to it. Others may pass through, and neither look nor write. What root
trusts (pid files, the lock) is where only root comes.
"""

from __future__ import annotations

import fcntl
import grp
import json
import os
import pwd
import stat
from dataclasses import asdict, dataclass
from pathlib import Path

from sandgate.accounts import is_key, new_key
from sandgate.durable import replace_file
from sandgate.settings import Settings
from sandgate.supervisor.processes import ProcessId, read_pid_file

SOCKETS = ("launcher", "egress", "haproxy", "control", "wake", "recorder", "decisions")
"""The components' unix sockets, `<name>.sock` in `run_dir`."""


class LayoutError(RuntimeError):
    """The node's directory cannot be used. The text says why and what to do."""


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """The ids that a component runs with."""

    name: str
    uid: int
    gid: int
    group: str
    """The name of its group."""

    @classmethod
    def of(cls, name: str) -> ServiceAccount:
        """Look `name` up. Raises :class:`LayoutError` if there is no such user, or it is root."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise LayoutError(
                f"service_user = {name!r}: no such user; create it with "
                f"`useradd --system --no-create-home --shell /usr/sbin/nologin {name}`"
            ) from None
        if entry.pw_uid == 0:
            raise LayoutError(f"service_user = {name!r}: must not be root; name another user")
        return cls(name, entry.pw_uid, entry.pw_gid, grp.getgrgid(entry.pw_gid).gr_name)


@dataclass(frozen=True, slots=True)
class Accounts:
    """A user for each component without root: none can read, signal or trace another."""

    control: ServiceAccount
    egress: ServiceAccount
    recorder: ServiceAccount
    proxy: ServiceAccount

    @classmethod
    def of(cls, service_user: str) -> Accounts:
        """Look all of them up. Raises :class:`LayoutError` as :meth:`ServiceAccount.of` does."""
        control = ServiceAccount.of(service_user)
        names = [f"{service_user}-{component}" for component in ("egress", "recorder", "proxy")]
        missing = [name for name in names if not _exists(name)]
        if missing:
            raise LayoutError(
                f"service_user = {service_user!r}: no such user{'s' * (len(missing) > 1)} as "
                f"{' and '.join(missing)}; create with `for name in {' '.join(missing)}; do "
                "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin $name; "
                "done`"
            )
        accounts = cls(control, *map(ServiceAccount.of, names))
        if len({one.uid for one in accounts.all}) < len(accounts.all):
            raise LayoutError(
                f"service_user = {service_user!r}: {service_user} and {', '.join(names)} must be "
                "different users; give each a uid of its own"
            )
        return accounts

    @property
    def all(self) -> tuple[ServiceAccount, ...]:
        """Each of them."""
        return (self.control, self.egress, self.recorder, self.proxy)


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one node."""

    data_dir: Path
    run_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        """The paths that `settings` stand for."""
        return cls(settings.data_dir, settings.run_dir)

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it lives."""
        return self.data_dir / "lock"

    @property
    def api_key(self) -> Path:
        """The operator's API key, readable by root alone."""
        return self.data_dir / "api_key"

    @property
    def log(self) -> Path:
        """The log of a node in the background."""
        return self.data_dir / "log" / "node.log"

    @property
    def record(self) -> Path:
        """What the running node says of itself."""
        return self.run_dir / "node.json"

    @property
    def pid_dir(self) -> Path:
        """The pid files of the components."""
        return self.run_dir / "pids"

    @property
    def cells(self) -> Path:
        """Where the launcher keeps its sandboxes' state; empty once none is left."""
        return self.data_dir / "cells"

    @property
    def haproxy_dir(self) -> Path:
        """What HAProxy reads."""
        return self.run_dir / "haproxy"

    def socket(self, name: str) -> Path:
        """The unix socket of component `name`."""
        return self.run_dir / f"{name}.sock"

    def prepare_data_dir(self) -> None:
        """Make the data directory (0755, root's) and the log's. Raises :class:`LayoutError`."""
        _directory(self.data_dir, 0o755)
        _directory(self.log.parent, 0o750)

    def prepare_run_dir(self, proxy: ServiceAccount) -> None:
        """Make the run directory. `proxy`: whom HAProxy runs as."""
        _directory(self.run_dir, 0o711)
        _directory(self.pid_dir, 0o700)
        # HAProxy passes through to sockets of its own, once it is no longer root.
        _directory(self.haproxy_dir, 0o710, proxy.gid)

    def remove_sockets(self) -> None:
        """Remove the sockets of components that are gone."""
        for name in SOCKETS:
            self.socket(name).unlink(missing_ok=True)

    def take_lock(self) -> int:
        """Lock the directory for this process; the descriptor that holds the lock.

        Raises :class:`LayoutError` if another node has it.
        """
        handle = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            holder = read_pid_file(self.lock)
            raise LayoutError(
                f"a node already runs in {self.data_dir} (pid {holder.pid if holder else '?'}); "
                "stop it with `sandgate down`, or give this one another data_dir"
            ) from None
        own = ProcessId.of(os.getpid())
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(asdict(own)).encode() if own else b"", 0)
        return handle

    def supervisor(self) -> ProcessId | None:
        """The supervisor that runs this node, or None. Asking never disturbs the lock."""
        holder = read_pid_file(self.lock)
        return holder if holder is not None and holder.alive() else None

    def ensure_api_key(self) -> str:
        """The API key, made (0600) if there is none yet. Raises :class:`LayoutError`."""
        if not self.api_key.exists():
            replace_file(self.api_key, f"{new_key()}\n".encode())
        return self.read_api_key()

    def read_api_key(self) -> str:
        """The API key. Raises :class:`LayoutError` if it is malformed, OSError if unreadable."""
        if stat.S_IMODE(self.api_key.stat().st_mode) & 0o077:
            raise LayoutError(
                f"{self.api_key} can be read by other users; "
                f"run `chmod 600 {self.api_key}`, or remove it to get a new key at the next start"
            )
        key = self.api_key.read_text().strip()
        if not is_key(key):
            raise LayoutError(
                f"{self.api_key} holds no API key (e2b_ and 40 hexadecimal digits); "
                "remove it to get a new one at the next start"
            )
        return key


def _directory(path: Path, mode: int, gid: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or path.stat().st_uid != 0:
        raise LayoutError(
            f"{path} must be a directory that belongs to root; run `chown root {path}`"
        )
    os.chown(path, 0, gid)
    path.chmod(mode)
