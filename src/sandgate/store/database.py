"""Reads and writes sandboxes. Calls are synchronous and short (a fraction of a millisecond)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Delete,
    Select,
    and_,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.engine import Row
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from sandgate.store.migrations import SchemaTooNew, migrate
from sandgate.store.models import NoteRow, SandboxRow, SnapshotRow
from sandgate.store.records import (
    Lifecycle,
    NetworkConfig,
    Note,
    NoteKind,
    SandboxRecord,
    SnapshotRecord,
)

_TABLE = SandboxRow.__table__
_SNAPSHOTS = SnapshotRow.__table__
_NOTES = NoteRow.__table__
# Made once: SQLAlchemy takes four times as long to make a statement as to carry it out.
_INSERT = insert(SandboxRow)
_CHANGE = update(SandboxRow).where(_TABLE.c.sandbox_id == bindparam("which"))
_DELETE = delete(SandboxRow).where(_TABLE.c.sandbox_id == bindparam("which"))
_Values = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None
_CHUNK = 200
"""Rows fetched at a time while a metadata filter looks for matches."""
ABOUT_SANDBOXES = (NoteKind.METRICS, NoteKind.JOURNAL)
"""Notes that go when the sandbox goes whose id is their name."""
_DELETE_NOTES_ABOUT = delete(NoteRow).where(
    _NOTES.c.kind.in_(ABOUT_SANDBOXES), _NOTES.c.name == bindparam("which")
)


class StoreError(RuntimeError):
    """The database could not be read or written."""


@dataclass(frozen=True, slots=True)
class ListQuery:
    """Which sandboxes to list, and in which order. All conditions must hold."""

    states: Set[str]
    owner: str | None = None
    """None: of all."""
    limit: int | None = None
    """Most records to give; None: all."""
    descending: bool = True
    """Newest first."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    started_after: datetime | None = None
    """Inclusive."""
    template: str | None = None
    after: tuple[datetime, str] | None = None
    """`started_at` and id of the last record of the page before."""


class Store:
    """The sandboxes of a node. One connection, used by one thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the database file, readable by its owner alone.

        Raises :class:`StoreError`, saying what to do.
        """
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
        except OSError as error:
            raise StoreError(
                f"cannot open the database {path}: {error.strerror}; the service user must be able "
                "to write the file and its directory"
            ) from error
        self._log = path.with_name(f"{path.name}-wal")
        self._engine = create_engine(
            f"sqlite:///{path}", poolclass=StaticPool, hide_parameters=True
        )
        event.listen(self._engine, "connect", configure)
        self._referred: dict[tuple[str, str], SnapshotRecord] | None = None
        """Snapshots by owner and id or name: every create asks, and hardly one means any."""
        try:
            migrate(self._engine)
            self._connection = self._engine.connect()
        except (SQLAlchemyError, SchemaTooNew) as error:
            self._engine.dispose()
            raise StoreError(f"cannot use the database {path}: {error}") from error

    def insert(self, record: SandboxRecord) -> None:
        """Add a sandbox. Raises :class:`StoreError`."""
        self._write(_INSERT, _to_row(record))

    def set_end(self, sandbox_id: str, end_at: datetime) -> None:
        """Change when a sandbox ends. Raises :class:`StoreError`."""
        self._change(sandbox_id, end_at=end_at)

    def set_state(
        self, sandbox_id: str, state: str, pause_mode: str | None, end_at: datetime
    ) -> None:
        """Say whether a sandbox runs or is paused, and how. Raises :class:`StoreError`."""
        self._change(sandbox_id, state=state, pause_mode=pause_mode, end_at=end_at)

    def set_network(self, sandbox_id: str, network: NetworkConfig, internet: bool | None) -> None:
        """Replace a sandbox's network settings. Raises :class:`StoreError`."""
        self._change(sandbox_id, network=network.to_wire(), internet=internet)

    def add_snapshot(self, record: SnapshotRecord) -> None:
        """Add a snapshot. Raises :class:`StoreError`."""
        self._referred = None
        self._write(insert(SnapshotRow), asdict(record))

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot; nothing happens if it is not known. Raises :class:`StoreError`."""
        self._referred = None
        self._write(delete(SnapshotRow).where(_SNAPSHOTS.c.snapshot_id == snapshot_id))

    def find_snapshot(self, reference: str, owner: str) -> SnapshotRecord | None:
        """An owner's snapshot of this id, or the newest of this name. Raises StoreError."""
        if self._referred is None:
            self._referred = {
                (record.owner, word): record
                for record in reversed(self.snapshots())
                for word in (record.snapshot_id, record.name)
                if word is not None
            }
        return self._referred.get((owner, reference))

    def snapshots(
        self,
        *,
        owner: str | None = None,
        sandbox_id: str | None = None,
        name: str | None = None,
        after: tuple[datetime, str] | None = None,
        limit: int | None = None,
    ) -> list[SnapshotRecord]:
        """Snapshots, newest first, from behind `after` (moment and id). Raises StoreError."""
        made, key = _SNAPSHOTS.c.created_at, _SNAPSHOTS.c.snapshot_id
        statement = select(_SNAPSHOTS).order_by(made.desc(), key.desc())
        if owner is not None:
            statement = statement.where(_SNAPSHOTS.c.owner == owner)
        if sandbox_id is not None:
            statement = statement.where(_SNAPSHOTS.c.sandbox_id == sandbox_id)
        if name is not None:
            statement = statement.where(_SNAPSHOTS.c.name == name)
        if after is not None:
            moment, last = after
            statement = statement.where(or_(made < moment, and_(made == moment, key < last)))
        return [SnapshotRecord(**row._mapping) for row in self._read(statement.limit(limit))]

    def delete(self, sandbox_id: str) -> None:
        """Forget a sandbox and the notes about it, if it is known. Raises :class:`StoreError`."""
        which = {"which": sandbox_id}
        self._write_all((_DELETE_NOTES_ABOUT, which), (_DELETE, which))

    def all(self) -> list[SandboxRecord]:
        """Every sandbox, oldest first. Raises :class:`StoreError`."""
        order = select(_TABLE).order_by(_TABLE.c.started_at, _TABLE.c.sandbox_id)
        return [_to_record(row) for row in self._read(order)]

    def find(self, query: ListQuery) -> list[SandboxRecord]:
        """The sandboxes that `query` asks for. Raises :class:`StoreError`."""
        found: list[SandboxRecord] = []
        for record in self._scan(query):
            if all(record.metadata.get(key) == value for key, value in query.metadata.items()):
                found.append(record)
                if len(found) == query.limit:
                    break
        return found

    def write_notes(self, kind: NoteKind, notes: Mapping[str, bytes]) -> None:
        """Keep `notes`, by name, instead of those of the same names. Raises :class:`StoreError`."""
        if notes:
            now = datetime.now(UTC)
            rows = [
                {"kind": kind, "name": name, "written_at": now, "data": data}
                for name, data in notes.items()
            ]
            names = [{"which": name} for name in notes]
            self._write_all((_delete_note(kind), names), (insert(NoteRow), rows))

    def notes(self, kind: NoteKind) -> dict[str, Note]:
        """All notes of a kind, by name, the oldest first. Raises :class:`StoreError`."""
        order = select(_NOTES).where(_NOTES.c.kind == kind).order_by(_NOTES.c.written_at)
        return {row.name: Note(row.written_at, row.data) for row in self._read(order)}

    def delete_notes(self, kind: NoteKind, names: Collection[str]) -> None:
        """Forget notes. Raises :class:`StoreError`."""
        if names:
            self._write(_delete_note(kind), [{"which": name} for name in names])

    async def flush(self) -> None:
        """Wait until what was written outlasts a power cut. Raises :class:`StoreError`.

        Else the last half minute may be lost: which is no harm for what runs, since it does not
        outlast one either.
        """
        try:
            await asyncio.to_thread(self._sync)
        except OSError as error:
            raise StoreError(f"cannot write to the database: {error}") from error

    def _sync(self) -> None:
        # What is not in this file is in the main one, and was synced there. That one is not to be
        # opened: closing it would end the locks that SQLite has on it in this process (fcntl(2)).
        with contextlib.suppress(FileNotFoundError), self._log.open("rb") as log:
            os.fsync(log.fileno())

    def close(self) -> None:
        """Close the database. It cannot be used afterwards."""
        self._connection.close()
        self._engine.dispose()

    def _scan(self, query: ListQuery) -> Iterator[SandboxRecord]:
        """All that match but for the metadata, which databases search in different ways."""
        position = query.after
        while True:
            rows = self._read(_select(query, position).limit(_CHUNK))
            for row in rows:
                yield _to_record(row)
            if len(rows) < _CHUNK:
                return
            position = (rows[-1].started_at, rows[-1].sandbox_id)

    def _change(self, sandbox_id: str, **values: Any) -> None:
        self._write(_CHANGE, {"which": sandbox_id, **values})

    def _write(self, statement: Any, values: _Values = None) -> None:
        self._write_all((statement, values))

    def _write_all(self, *steps: tuple[Any, _Values]) -> None:
        """Carry out several statements, all or none."""
        try:
            with self._connection.begin():
                for statement, values in steps:
                    self._connection.execute(statement, values)
        except SQLAlchemyError as error:
            raise StoreError(f"cannot write to the database: {cause(error)}") from error

    def _read(self, statement: Select[Any]) -> list[Row[Any]]:
        try:
            with self._connection.begin():
                return list(self._connection.execute(statement))
        except SQLAlchemyError as error:
            raise StoreError(f"cannot read the database: {cause(error)}") from error


def _delete_note(kind: NoteKind) -> Delete:
    """Takes the name as the value `which`."""
    return delete(NoteRow).where(_NOTES.c.kind == kind, _NOTES.c.name == bindparam("which"))


def configure(connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
    """Set a new connection to SQLite up."""
    cursor = connection.cursor()
    try:
        # NORMAL in WAL mode: a power cut may lose the last writes but never corrupts the file.
        # Whoever writes what must not be lost calls Store.flush.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=5000"):
            cursor.execute(f"PRAGMA {pragma}")
        # KiB of pages that are kept by the process. The kernel has them as well.
        cursor.execute("PRAGMA cache_size=-512")
    finally:
        cursor.close()


def cause(error: SQLAlchemyError) -> str:
    """The driver's words, without the statement that SQLAlchemy adds to them."""
    return str(getattr(error, "orig", None) or type(error).__name__)


def _select(query: ListQuery, position: tuple[datetime, str] | None) -> Select[Any]:
    started, name = _TABLE.c.started_at, _TABLE.c.sandbox_id
    statement = select(_TABLE).where(_TABLE.c.state.in_(sorted(query.states)))
    if query.owner is not None:
        statement = statement.where(_TABLE.c.owner == query.owner)
    if query.started_after is not None:
        statement = statement.where(started >= query.started_after)
    if query.template is not None:
        statement = statement.where(_TABLE.c.template == query.template)
    if position is not None:
        moment, last = position
        beyond = started < moment if query.descending else started > moment
        next_to = name < last if query.descending else name > last
        statement = statement.where(or_(beyond, and_(started == moment, next_to)))
    if query.descending:
        return statement.order_by(started.desc(), name.desc())
    return statement.order_by(started, name)


def _to_row(record: SandboxRecord) -> dict[str, Any]:
    return {
        "sandbox_id": record.sandbox_id,
        "template": record.template,
        "state": record.state,
        "started_at": record.started_at,
        "end_at": record.end_at,
        "cpu_count": record.cpu_count,
        "memory_mb": record.memory_mb,
        "disk_mb": record.disk_mb,
        "max_pids": record.max_pids,
        "metadata": dict(record.metadata),
        "env": dict(record.env),
        "network": record.network.to_wire(),
        "internet": record.internet,
        "envd_version": record.envd_version,
        "envd_token": record.envd_token,
        "traffic_token": record.traffic_token,
        "lifecycle": record.lifecycle.to_json(),
        "pause_mode": record.pause_mode,
        "origin": record.origin,
        "owner": record.owner,
    }


def _to_record(row: Row[Any]) -> SandboxRecord:
    values = dict(row._mapping)
    values["network"] = NetworkConfig.from_wire(values["network"])
    values["lifecycle"] = Lifecycle.from_json(values["lifecycle"])
    return SandboxRecord(**values)
