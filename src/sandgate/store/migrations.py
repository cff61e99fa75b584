"""Brings a database to the current version of the tables.

An empty database gets the tables as the models have them. One that exists is moved on by one step
of :data:`STEPS` after the other, each in the transaction that also raises its version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine, insert, inspect, select, text, update

from sandgate.accounts import OPERATOR
from sandgate.store.models import Base, NoteRow, SandboxRow, SchemaVersion, SnapshotRow
from sandgate.store.records import Lifecycle

Step = Callable[[Connection], None]


def _add_notes(connection: Connection) -> None:
    Base.metadata.create_all(connection, tables=[Base.metadata.tables[NoteRow.__tablename__]])


def _add_pausing(connection: Connection) -> None:
    lifecycle = json.dumps(Lifecycle(timeout=300).to_json())
    for column in (
        f"lifecycle JSON NOT NULL DEFAULT '{lifecycle}'",
        "pause_mode VARCHAR(16)",
        "origin VARCHAR(255)",
    ):
        connection.execute(text(f"ALTER TABLE sandboxes ADD COLUMN {column}".replace(":", r"\:")))
    Base.metadata.create_all(connection, tables=[Base.metadata.tables[SnapshotRow.__tablename__]])


def _add_owners(connection: Connection) -> None:
    """What there is was made with the one key that there was."""
    for table in (SandboxRow.__tablename__, SnapshotRow.__tablename__):
        # The step before made the table of snapshots as it is now.
        if "owner" not in {column["name"] for column in inspect(connection).get_columns(table)}:
            column = f"owner VARCHAR(64) NOT NULL DEFAULT '{OPERATOR}'"
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column}"))


STEPS: Sequence[Step] = (_add_notes, _add_pausing, _add_owners)
"""`STEPS[n]` turns version n + 1 into version n + 2. Steps are only ever added, at the end."""


class SchemaTooNew(RuntimeError):
    """The database was made by a newer version of the program."""


def migrate(engine: Engine, steps: Sequence[Step] = STEPS) -> int:
    """Bring the database up to date; returns its version. Raises :class:`SchemaTooNew`."""
    newest = len(steps) + 1
    with engine.begin() as connection:
        if not inspect(connection).has_table(SchemaVersion.__tablename__):
            Base.metadata.create_all(connection)
            connection.execute(insert(SchemaVersion), {"version": newest})
            return newest
    with engine.connect() as connection:
        version = connection.execute(select(SchemaVersion.version)).scalar_one()
    if version > newest:
        raise SchemaTooNew(
            f"the database has schema version {version}, this program knows up to {newest}: "
            "run the newer version of the program, or move the database file away to start afresh"
        )
    for number in range(version, newest):
        with engine.begin() as connection:
            steps[number - 1](connection)
            connection.execute(update(SchemaVersion).values(version=number + 1))
    return newest
