"""The decision log on disk: decisions added up, for a week, in a database of its own.

Of its own, because it is written all the time, by a thread that nobody waits for, and because
nothing depends on it: one that cannot be used is begun anew.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Index,
    Select,
    String,
    Text,
    UniqueConstraint,
    case,
    create_engine,
    delete,
    event,
    func,
    select,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.engine import Connection, Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool

from sandgate.decisions.tally import Subject, Sum
from sandgate.reasons import Reason
from sandgate.store.database import StoreError, cause, configure

KEPT_SECONDS = 7 * 86_400
"""How long a row is kept after its last decision."""
ROWS_PER_SANDBOX = 1000
"""Most rows of one sandbox; the oldest go, and are counted."""
ROWS = 100_000
"""Most rows in all: some 40 MB."""

_VERSION = 1
"""Of the tables. A database with others is begun anew."""
_AT_ONCE = 500
"""Rows deleted by one statement."""

_log = logging.getLogger(__name__)


class _Base(DeclarativeBase):
    pass


class DecisionRow(_Base):
    """Decisions that have all but time and amount in common. Moments: milliseconds since 1970."""

    __tablename__ = "decisions"
    __table_args__ = (
        UniqueConstraint(*Subject._fields),
        Index("decisions_by_last", "last"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    sandbox_id: Mapped[str] = mapped_column(String(32))
    protocol: Mapped[str] = mapped_column(String(16))
    destination: Mapped[str] = mapped_column(String(45))
    port: Mapped[int]
    name: Mapped[str] = mapped_column(Text)
    """Empty for none, as `rule`: no two NULLs are the same."""
    allowed: Mapped[bool]
    reason: Mapped[str] = mapped_column(String(32))
    rule: Mapped[str] = mapped_column(Text)
    reported: Mapped[bool]
    first: Mapped[int] = mapped_column(BigInteger)
    last: Mapped[int] = mapped_column(BigInteger)
    count: Mapped[int] = mapped_column(BigInteger)
    sent: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger)
    milliseconds: Mapped[int] = mapped_column(BigInteger)


class LoggedRow(_Base):
    """A sandbox with decisions, and how many of them have no row, or none any more."""

    __tablename__ = "logged"

    sandbox_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    owner: Mapped[str] = mapped_column(String(64))
    """Empty if not known."""
    last: Mapped[int] = mapped_column(BigInteger, index=True)
    suppressed: Mapped[int] = mapped_column(BigInteger)
    dropped_rows: Mapped[int] = mapped_column(BigInteger)
    dropped: Mapped[int] = mapped_column(BigInteger)
    dropped_bytes: Mapped[int] = mapped_column(BigInteger)


_TABLE = DecisionRow.__table__
_LOGGED = LoggedRow.__table__
_OLDEST = select(_TABLE).order_by(_TABLE.c["last"], _TABLE.c.id)
_AMOUNTS = ("count", "sent", "received", "milliseconds")
_LOSSES = ("suppressed", "dropped_rows", "dropped", "dropped_bytes")
_NO_LOSSES = dict.fromkeys(_LOSSES, 0)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A row."""

    id: int
    """Rises with the moment of the first decision."""
    subject: Subject
    sum: Sum


@dataclass(frozen=True, slots=True)
class Logged:
    """What is known of a sandbox beside its rows."""

    owner: str
    """Empty if not known."""
    suppressed: int = 0
    """Decisions that came too fast to be recorded."""
    dropped_rows: int = 0
    """Rows that had to make room."""
    dropped: int = 0
    """Decisions in them."""
    dropped_bytes: int = 0
    """Bytes in them, both ways."""


@dataclass(frozen=True, slots=True)
class DecisionQuery:
    """Which rows of a sandbox. All conditions must hold; newest first."""

    sandbox_id: str
    limit: int
    allowed: bool | None = None
    protocol: str | None = None
    name: str | None = None
    destination: str | None = None
    reason: str | None = None
    since: float | None = None
    """Seconds since 1970: with a decision at or after it."""
    until: float | None = None
    """Seconds since 1970: with a decision at or before it."""
    before: int | None = None
    """Id of the last row of the page before."""


class DecisionStore:
    """One connection, used by one thread at a time."""

    def __init__(
        self, path: Path, *, rows_per_sandbox: int = ROWS_PER_SANDBOX, rows: int = ROWS
    ) -> None:
        """Open or make the file, readable by its owner alone. Raises :class:`StoreError`."""
        self._rows_per_sandbox = rows_per_sandbox
        self._rows = rows
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StoreError(f"cannot open the database {path}: {error.strerror}") from error
        self._engine = create_engine(
            f"sqlite:///{path}",
            poolclass=StaticPool,
            hide_parameters=True,
            connect_args={"check_same_thread": False},
        )
        event.listen(self._engine, "connect", configure)
        try:
            self._at_most = self._prepare()
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise StoreError(f"cannot use the database {path}: {error}") from error

    def add(
        self,
        sums: Sequence[tuple[Subject, Sum]],
        unrecorded: Mapping[str, int],
        owners: Mapping[str, str],
        now: float,
    ) -> None:
        """Add decisions, and by sandbox how many there were beside, and who owns it if known.

        Raises StoreError.
        """
        rows = [_to_row(subject, amount) for subject, amount in sums]
        sandboxes = {subject.sandbox_id for subject, _ in sums} | unrecorded.keys()
        logged = [
            {
                **_NO_LOSSES,
                "sandbox_id": name,
                "owner": owners.get(name, ""),
                "last": _ms(now),
                "suppressed": unrecorded.get(name, 0),
            }
            for name in sandboxes
        ]
        statement = insert(DecisionRow)
        new = statement.excluded
        added = {column: _TABLE.c[column] + new[column] for column in _AMOUNTS}
        statement = statement.on_conflict_do_update(
            index_elements=Subject._fields,
            set_={
                **added,
                "first": func.min(_TABLE.c.first, new.first),
                "last": func.max(_TABLE.c["last"], new["last"]),
            },
        )
        with self._transaction() as connection:
            if rows:
                connection.execute(statement, rows)
            _log_sandboxes(connection, logged)
            for sandbox_id in {subject.sandbox_id for subject, _ in sums}:
                self._bound_sandbox(connection, sandbox_id)
            self._at_most += len(rows)
            if self._at_most > self._rows:
                self._bound(connection)

    def find(self, query: DecisionQuery) -> list[Recorded]:
        """Rows of a sandbox. Raises StoreError."""
        return [_from_row(row) for row in self._read(_select(query))]

    def about(self, sandbox_id: str) -> Logged | None:
        """What is known of a sandbox beside its rows; None if nothing. Raises StoreError."""
        columns = [_LOGGED.c[name] for name in ("owner", *_LOSSES)]
        for row in self._read(select(*columns).where(_LOGGED.c.sandbox_id == sandbox_id)):
            return Logged(*row)
        return None

    def expire(self, now: float) -> None:
        """Forget what is too old. Raises StoreError."""
        before = _ms(now - KEPT_SECONDS)
        newest = select(_LOGGED.c.sandbox_id).order_by(_LOGGED.c["last"].desc())
        with self._transaction() as connection:
            connection.execute(delete(DecisionRow).where(_TABLE.c["last"] < before))
            connection.execute(delete(LoggedRow).where(_LOGGED.c["last"] < before))
            kept = newest.limit(self._rows)
            connection.execute(delete(LoggedRow).where(_LOGGED.c.sandbox_id.not_in(kept)))

    def close(self) -> None:
        """Close the database. It cannot be used afterwards."""
        self._engine.dispose()

    def _prepare(self) -> int:
        """Make the tables if need be; how many rows there are."""
        with self._engine.begin() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, _VERSION):
                _log.warning("the decision log has version %s: it is begun anew", version)
                _Base.metadata.drop_all(connection)
            _Base.metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={_VERSION}")
            return int(connection.execute(select(func.count()).select_from(_TABLE)).scalar_one())

    def _bound_sandbox(self, connection: Connection, sandbox_id: str) -> None:
        mine = _TABLE.c.sandbox_id == sandbox_id
        count = connection.execute(select(func.count()).where(mine)).scalar_one()
        if count > self._rows_per_sandbox:
            oldest = (
                select(DecisionRow.__table__).where(mine).order_by(_TABLE.c["last"], _TABLE.c.id)
            )
            self._drop(connection, oldest, count - self._rows_per_sandbox)

    def _bound(self, connection: Connection) -> None:
        count = connection.execute(select(func.count()).select_from(_TABLE)).scalar_one()
        self._at_most = int(count)
        if count > self._rows:
            self._drop(connection, _OLDEST, count - self._rows)
            self._at_most = self._rows

    def _drop(self, connection: Connection, oldest: Select[Any], count: int) -> None:
        """Delete the first `count` rows of `oldest`, and count what was in them."""
        while count > 0:
            rows = list(connection.execute(oldest.limit(min(count, _AT_ONCE))))
            losses = [
                {
                    **_NO_LOSSES,
                    "sandbox_id": row.sandbox_id,
                    "owner": "",
                    "last": row.last,
                    "dropped_rows": 1,
                    "dropped": row._mapping["count"],
                    "dropped_bytes": row.sent + row.received,
                }
                for row in rows
            ]
            connection.execute(delete(DecisionRow).where(_TABLE.c.id.in_([row.id for row in rows])))
            _log_sandboxes(connection, losses)
            count -= len(rows)

    def _read(self, statement: Select[Any]) -> Sequence[Row[Any]]:
        with self._transaction() as connection:
            return list(connection.execute(statement))

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StoreError(f"the decision log does not work: {cause(error)}") from error


def _log_sandboxes(connection: Connection, logged: Sequence[Mapping[str, Any]]) -> None:
    """Note what is known beside the rows; an owner once known stays."""
    if not logged:
        return
    statement = insert(LoggedRow)
    new = statement.excluded
    added = {column: _LOGGED.c[column] + new[column] for column in _LOSSES}
    last = func.max(_LOGGED.c["last"], new["last"])
    owner = case((new.owner == "", _LOGGED.c.owner), else_=new.owner)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=("sandbox_id",), set_={**added, "last": last, "owner": owner}
        ),
        logged,
    )


def _select(query: DecisionQuery) -> Select[Any]:
    columns = _TABLE.c
    statement = select(_TABLE).where(columns.sandbox_id == query.sandbox_id)
    for column in ("allowed", "protocol", "name", "destination", "reason"):
        if (value := getattr(query, column)) is not None:
            statement = statement.where(columns[column] == value)
    if query.since is not None:
        statement = statement.where(columns["last"] >= _ms(query.since))
    if query.until is not None:
        statement = statement.where(columns.first <= _ms(query.until))
    if query.before is not None:
        statement = statement.where(columns.id < query.before)
    return statement.order_by(columns.id.desc()).limit(query.limit)


def _ms(moment: float) -> int:
    return round(moment * 1000)


def _to_row(subject: Subject, amount: Sum) -> dict[str, object]:
    return {
        **subject._asdict(),
        "name": subject.name or "",
        "rule": subject.rule or "",
        "first": _ms(amount.first),
        "last": _ms(amount.last),
        **{column: getattr(amount, column) for column in _AMOUNTS},
    }


def _from_row(row: Row[Any]) -> Recorded:
    subject = Subject(
        sandbox_id=row.sandbox_id,
        protocol=row.protocol,
        destination=row.destination,
        port=row.port,
        name=row.name or None,
        allowed=row.allowed,
        reason=Reason(row.reason),
        rule=row.rule or None,
        reported=row.reported,
    )
    # `count` is a method of rows, too.
    values = row._mapping
    amounts = (int(values[column]) for column in _AMOUNTS)
    return Recorded(row.id, subject, Sum(row.first / 1000, row.last / 1000, *amounts))
