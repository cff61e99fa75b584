"""What a node must not lose, in one archive: the database, keys and certificates."""

from __future__ import annotations

import io
import os
import select
import signal
import sqlite3
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from sandgate.settings import Settings
from sandgate.store.backup import copy_database
from sandgate.supervisor.layout import Layout, ServiceAccount

_DATABASE = "store/store.db"
_SECONDS = 300.0
_MAX_SAID = 2000


class BackupError(RuntimeError):
    """There is no backup. The text says why and what to do."""


def write_backup(settings: Settings, target: Path) -> list[str]:
    """Write the archive `target` (0600, in place of an earlier one); the names in it.

    The node may run. Raises BackupError, LayoutError, OSError; `target` is as before then.
    """
    account = ServiceAccount.of(settings.service_user)
    layout = Layout.of(settings)
    draft = target.with_name(f".{target.name}.new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
            names = _add_all(archive, settings, layout, account)
            file.flush()
            os.fsync(file.fileno())
        if not names:
            raise BackupError(f"there is nothing in {settings.data_dir} yet; check data_dir")
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return names


def _add_all(
    archive: tarfile.TarFile, settings: Settings, layout: Layout, account: ServiceAccount
) -> list[str]:
    names = []
    if (settings.data_dir / _DATABASE).exists():
        _add(archive, _DATABASE, _database(settings.data_dir / _DATABASE, account), account.name)
        names.append(_DATABASE)
    certificates = sorted((settings.data_dir / "certificates").glob("ca.key"))
    certificates += sorted((settings.data_dir / "certificates").glob("*.pem"))
    for path in (layout.api_key, settings.key_file, *certificates):
        if path.is_file():
            name = str(path.relative_to(settings.data_dir))
            _add(archive, name, path.read_bytes(), "root", path.stat().st_mode & 0o777)
            names.append(name)
    return names


def _add(
    archive: tarfile.TarFile, name: str, content: bytes, owner: str, mode: int = 0o600
) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.uname, entry.gname = len(content), mode, owner, owner
    archive.addfile(entry, io.BytesIO(content))


def _database(path: Path, account: ServiceAccount) -> bytes:
    """The database's copy, made as the user it belongs to: root follows no path of that user's."""
    with tempfile.TemporaryDirectory(prefix="sandgate-backup-") as directory:
        place = Path(directory)
        os.chown(place, account.uid, account.gid)
        copy = place / "store.db"

        def work() -> None:
            os.umask(0o077)
            copy_database(path, copy)

        _as_account(account, work)
        handle = os.open(copy, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            return file.read()


def _as_account(account: ServiceAccount, work: Callable[[], None]) -> None:
    """Do `work` in a child that is `account`'s. Raises BackupError."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            os.setgroups([])
            os.setresgid(account.gid, account.gid, account.gid)
            os.setresuid(account.uid, account.uid, account.uid)
            work()
            status = 0
        except (OSError, sqlite3.Error) as error:
            os.write(write, str(error).encode()[:_MAX_SAID])
        finally:
            os._exit(status)
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], _SECONDS)
        if not ready:
            os.kill(child, signal.SIGKILL)
        said = os.read(read, _MAX_SAID).decode(errors="replace") if ready else "it takes too long"
    finally:
        os.close(read)
        _, status = os.waitpid(child, 0)
    if status != 0:
        raise BackupError(f"the database was not copied: {said or 'its copier died'}")
