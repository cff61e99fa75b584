"""Routes of what a sandbox used and what happened to it (wire contract, 2.2 and 2.8)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

from sandgate.api.dependencies import Calling, SandboxId, Served
from sandgate.api.errors import ApiError
from sandgate.api.routing import new_router
from sandgate.node.errors import SandboxNotFound
from sandgate.node.identifiers import parse_sandbox_id
from sandgate.node.journal import CAPACITY, Entry, JournalQuery, Level
from sandgate.node.metrics import Sample
from sandgate.node.sandbox import LiveSandbox

MOST_SANDBOXES = 100
"""Most sandboxes that are asked about at once."""

router = new_router("observation", (400, 401, 404, 500, 503))

LevelName = Literal["debug", "info", "warn", "error"]
_Moment = Annotated[int | None, Query(ge=0, le=2**53)]
_Limit = Annotated[int, Query(ge=0, le=CAPACITY)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class SandboxMetric(_Answer):
    """What a sandbox used at a moment. Sizes in bytes."""

    timestamp: datetime
    timestamp_unix: int = Field(alias="timestampUnix")
    cpu_count: int = Field(alias="cpuCount")
    cpu_used_pct: float = Field(alias="cpuUsedPct", ge=0, le=100)
    """Of all its processors, since the metric before."""
    mem_used: int = Field(alias="memUsed")
    """Without `memCache`."""
    mem_total: int = Field(alias="memTotal")
    mem_cache: int = Field(alias="memCache")
    disk_used: int = Field(alias="diskUsed")
    disk_total: int = Field(alias="diskTotal")

    @classmethod
    def of(cls, sandbox: LiveSandbox, sample: Sample) -> Self:
        """In the terms of the API."""
        return cls(
            timestamp=datetime.fromtimestamp(sample.at, UTC),
            timestamp_unix=int(sample.at),
            cpu_count=sandbox.record.cpu_count,
            cpu_used_pct=round(sample.cpu_pct, 2),
            mem_used=sample.memory,
            mem_total=sandbox.record.memory_mb << 20,
            mem_cache=sample.cache,
            disk_used=sample.disk,
            disk_total=sample.disk_size,
        )


class SandboxesWithMetrics(_Answer):
    """The latest metric of each sandbox that is alive and has one, by its id."""

    sandboxes: dict[str, SandboxMetric]


class LogLine(_Answer):
    """An entry as text: an object in JSON, which is what E2B's own command line reads there."""

    timestamp: datetime
    line: str


class LogEntry(_Answer):
    """An entry."""

    timestamp: datetime
    message: str
    level: LevelName
    fields: dict[str, str]

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """In the terms of the API."""
        return cls(
            timestamp=datetime.fromtimestamp(entry.at / 1000, UTC),
            message=entry.message,
            level=_NAMES[entry.level],
            fields=dict(entry.fields),
        )

    def line(self) -> LogLine:
        """All of it in one line."""
        entry = {**self.fields, "level": self.level, "logger": "sandgate", "message": self.message}
        return LogLine(timestamp=self.timestamp, line=json.dumps(entry))


class SandboxLogs(_Answer):
    """Entries in both forms, the oldest first."""

    logs: list[LogLine]
    log_entries: list[LogEntry] = Field(alias="logEntries")


class SandboxLogsV2(_Answer):
    """Entries in the order that was asked for."""

    logs: list[LogEntry]


_NAMES: dict[Level, LevelName] = {
    Level.DEBUG: "debug",
    Level.INFO: "info",
    Level.WARN: "warn",
    Level.ERROR: "error",
}
_LEVELS = {name: level for level, name in _NAMES.items()}


@router.get("/sandboxes/metrics")
async def metrics_of_many(
    served: Served,
    caller: Calling,
    sandbox_ids: Annotated[str, Query(description="Ids with commas between them.", min_length=1)],
) -> SandboxesWithMetrics:
    """The latest metric of sandboxes. Ids of none, or of another's, are left out."""
    names = sandbox_ids.split(",")
    if len(names) > MOST_SANDBOXES:
        raise ApiError(
            400, f"sandbox_ids has {len(names)} ids: ask for at most {MOST_SANDBOXES} at once"
        )
    found = {}
    for name in names:
        parsed = parse_sandbox_id(name)
        if parsed is None:
            raise ApiError(400, f"Invalid sandbox ID {name[:100]!r}: it has a-z and 0-9 only")
        try:
            served.node.require_owner(parsed, caller.owner)
            sandbox = served.node.observe(parsed)
        except SandboxNotFound:
            continue
        if (sample := sandbox.meter.history.last()) is not None:
            found[parsed] = SandboxMetric.of(sandbox, sample)
    return SandboxesWithMetrics(sandboxes=found)


@router.get("/sandboxes/{sandbox_id}/metrics")
async def metrics(
    sandbox_id: SandboxId, served: Served, start: _Moment = None, end: _Moment = None
) -> list[SandboxMetric]:
    """What a sandbox used, every 5 seconds while it runs. `start`, `end`: seconds since 1970."""
    sandbox = served.node.observe(sandbox_id)
    return [SandboxMetric.of(sandbox, item) for item in sandbox.meter.history.between(start, end)]


@router.get("/sandboxes/{sandbox_id}/logs")
async def logs(
    sandbox_id: SandboxId, served: Served, start: _Moment = None, limit: _Limit = CAPACITY
) -> SandboxLogs:
    """What happened to a sandbox (old form). `start`: milliseconds since 1970."""
    found = served.node.observe(sandbox_id).journal.find(JournalQuery(start, limit))
    entries = [LogEntry.of(entry) for entry in found]
    return SandboxLogs(logs=[entry.line() for entry in entries], log_entries=entries)


@router.get("/v2/sandboxes/{sandbox_id}/logs")
async def logs_v2(
    sandbox_id: SandboxId,
    served: Served,
    cursor: _Moment = None,
    limit: _Limit = CAPACITY,
    direction: Literal["forward", "backward"] = "forward",
    level: LevelName = "debug",
    search: Annotated[str, Query(max_length=256)] = "",
) -> SandboxLogsV2:
    """What happened to a sandbox. `cursor`: where to start, in milliseconds since 1970.

    `level` is the least grave to give, `search` what a message must contain.
    """
    query = JournalQuery(cursor, limit, direction == "backward", _LEVELS[level], search)
    found = served.node.observe(sandbox_id).journal.find(query)
    return SandboxLogsV2(logs=[LogEntry.of(entry) for entry in found])
