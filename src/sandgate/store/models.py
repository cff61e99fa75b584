"""The tables. Types are those that SQLite and PostgreSQL share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, BigInteger, Index, LargeBinary, String, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class UtcDateTime(TypeDecorator[datetime]):
    """A moment as whole microseconds since 1970: exact, ordered and the same in every database.

    SQLite has no type for a moment with a time zone, and would hand back a naive one.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + int(value) * _MICROSECOND


class Base(DeclarativeBase):
    """All tables of a node."""


class SchemaVersion(Base):
    """One row: which version of the tables this database has."""

    __tablename__ = "schema_version"

    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class NoteRow(Base):
    """Bytes under a name, for what is only ever read as a whole."""

    __tablename__ = "notes"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    written_at: Mapped[datetime] = mapped_column(UtcDateTime)
    data: Mapped[bytes] = mapped_column(LargeBinary)


class SandboxRow(Base):
    """A sandbox that is alive. Ended ones have no row."""

    __tablename__ = "sandboxes"
    __table_args__ = (Index("sandboxes_by_start", "started_at", "sandbox_id"),)

    sandbox_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    template: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    end_at: Mapped[datetime] = mapped_column(UtcDateTime)
    cpu_count: Mapped[int]
    memory_mb: Mapped[int]
    disk_mb: Mapped[int]
    max_pids: Mapped[int]
    # `metadata` is a name that SQLAlchemy keeps for itself.
    labels: Mapped[dict[str, str]] = mapped_column("metadata", JSON)
    env: Mapped[dict[str, str]] = mapped_column(JSON)
    network: Mapped[dict[str, Any]] = mapped_column(JSON)
    internet: Mapped[bool | None]
    envd_version: Mapped[str] = mapped_column(String(32))
    envd_token: Mapped[str | None] = mapped_column(Text)
    traffic_token: Mapped[str | None] = mapped_column(Text)
    lifecycle: Mapped[dict[str, Any]] = mapped_column(JSON)
    pause_mode: Mapped[str | None] = mapped_column(String(16))
    origin: Mapped[str | None] = mapped_column(String(255))
    owner: Mapped[str] = mapped_column(String(64))


class SnapshotRow(Base):
    """A snapshot."""

    __tablename__ = "snapshots"

    snapshot_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    sandbox_id: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str | None] = mapped_column(String(255))
    template: Mapped[str] = mapped_column(String(255))
    disk_mb: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    owner: Mapped[str] = mapped_column(String(64))
