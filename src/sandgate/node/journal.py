"""What happened to a sandbox, in bounded memory: what its logs show. Pure."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum

CAPACITY = 1000
"""Most entries that are kept; the oldest go first."""
_LONGEST_FIELD = 500


class Level(IntEnum):
    """How grave an entry is. The names in lower case are those on the wire."""

    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened."""

    at: int
    """Milliseconds since 1970; no two entries of a journal have the same."""
    level: Level
    message: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class JournalQuery:
    """Which entries, and in which order."""

    cursor: int | None = None
    """Milliseconds: nothing before it, or when going backward nothing after it."""
    limit: int = CAPACITY
    backward: bool = False
    level: Level = Level.DEBUG
    """The least grave."""
    search: str = ""
    """What the message contains."""


class Journal:
    """Entries in the order of time."""

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self._entries = deque(entries, CAPACITY)
        self.changed = False
        """Is there something that :meth:`pack` has not given yet?"""

    def add(self, message: str, level: Level = Level.INFO, **fields: object) -> None:
        """Note what happens now. Fields that are None are left out, long ones cut."""
        shown = {
            name: str(value)[:_LONGEST_FIELD] for name, value in fields.items() if value is not None
        }
        now = int(time.time() * 1000)
        at = max(now, self._entries[-1].at + 1) if self._entries else now
        self._entries.append(Entry(at, level, message, shown))
        self.changed = True

    def find(self, query: JournalQuery) -> list[Entry]:
        """The entries that `query` asks for."""
        entries = reversed(self._entries) if query.backward else iter(self._entries)
        found: list[Entry] = []
        for entry in entries:
            if len(found) >= query.limit:
                break
            if entry.level < query.level or query.search not in entry.message:
                continue
            if query.cursor is not None:
                beyond = entry.at > query.cursor if query.backward else entry.at < query.cursor
                if beyond:
                    continue
            found.append(entry)
        return found

    def pack(self) -> bytes:
        """All of it, to make the same journal of."""
        self.changed = False
        rows = [(item.at, item.level, item.message, item.fields) for item in self._entries]
        return json.dumps(rows).encode()

    @classmethod
    def unpack(cls, packed: bytes) -> Journal:
        """The inverse of :meth:`pack`. Raises ValueError."""
        rows = json.loads(packed)
        return cls(Entry(at, Level(level), message, fields) for at, level, message, fields in rows)
