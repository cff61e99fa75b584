"""Brings a database to the current version of the tables.

An empty database gets the tables as the models have them. One that exists is moved on by one step
of :data:`STEPS` after the other, each in the transaction that also raises its version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Connection, Engine, insert, inspect, select, update

from sandgate.store.models import Base, NoteRow, SchemaVersion

Step = Callable[[Connection], None]


def _add_notes(connection: Connection) -> None:
    Base.metadata.create_all(connection, tables=[Base.metadata.tables[NoteRow.__tablename__]])


STEPS: Sequence[Step] = (_add_notes,)
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
