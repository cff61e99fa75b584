"""The decision log of a sandbox: what was decided for its traffic, in pages or live."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Annotated, Literal, Self

from fastapi import Depends, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from sandgate.api.dependencies import AnyId, Calling, Served, Services, checked_id
from sandgate.api.errors import ApiError
from sandgate.api.listing import BadQuery, parse_moment
from sandgate.api.routing import new_router
from sandgate.decisions.tally import Subject, Sum
from sandgate.node.decisions import MAX_TAILS, DecisionHub
from sandgate.node.errors import SandboxNotFound
from sandgate.node.node import Node
from sandgate.policy import normalise_name
from sandgate.reasons import Reason
from sandgate.store.decisions import DecisionQuery, Logged

PAGE = 1000
"""Most rows of a page."""
EVENT_STREAM = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
"""After so long without a decision, a live reader gets a comment, so that a dead one is noticed."""
_LOOK_SECONDS = 1.0
"""From one look at whether the sandbox is still there to the next."""
_PAGED = {"X-Next-Token": {"description": "Given if there is more.", "schema": {"type": "string"}}}


async def _logged(sandbox_id: AnyId, served: Served, caller: Calling) -> str:
    parsed = checked_id(sandbox_id)
    try:
        served.node.require_owner(parsed, caller.owner)
    except SandboxNotFound:
        logged = await served.decisions.about(parsed)
        if logged is None or logged.owner != caller.owner:
            raise
    return parsed


LoggedId = Annotated[str, Depends(_logged)]
"""The id of a sandbox of the caller's that is there, or was within the time of the log."""

router = new_router("network", (400, 401, 404, 429, 500, 503))

Verdict = Literal["allow", "deny"]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class NetworkDecision(_Answer):
    """Decisions that have all but time and amount in common, added up."""

    time: datetime
    """Of the last of them, as `lastSeen`."""
    sandbox_id: str = Field(alias="sandboxID")
    protocol: str
    """`http`, `tls`, `dns`, `tcp`, `udp`, `icmp`, or the number of another IP protocol."""
    destination: str
    """The address that the sandbox aimed at."""
    port: int
    """0 where the protocol has none."""
    name: str | None
    """The name that was shown (TLS, HTTP) or asked for (DNS)."""
    verdict: Verdict
    reason: Reason
    rule: str | None
    """The entry of the policy that decided, or the range that is always denied."""
    reported: bool
    """Whether it passed only because the policy is in report mode."""
    count: int
    """Decisions. In a live stream 0 for the end of what was told when it began."""
    first_seen: datetime = Field(alias="firstSeen")
    last_seen: datetime = Field(alias="lastSeen")
    bytes_sent: int = Field(alias="bytesSent")
    bytes_received: int = Field(alias="bytesReceived")
    duration_ms: int = Field(alias="durationMs")
    """How long connections were open, in sum."""

    @classmethod
    def of(cls, subject: Subject, amount: Sum) -> Self:
        """In the terms of the API."""
        last = datetime.fromtimestamp(amount.last, UTC)
        return cls(
            time=last,
            sandbox_id=subject.sandbox_id,
            protocol=subject.protocol,
            destination=subject.destination,
            port=subject.port,
            name=subject.name,
            verdict="allow" if subject.allowed else "deny",
            reason=subject.reason,
            rule=subject.rule,
            reported=subject.reported,
            count=amount.count,
            first_seen=datetime.fromtimestamp(amount.first, UTC),
            last_seen=last,
            bytes_sent=amount.sent,
            bytes_received=amount.received,
            duration_ms=amount.milliseconds,
        )


class NotRecorded(_Answer):
    """Decisions that are in no row."""

    suppressed: int = 0
    """They came too fast to be recorded."""
    dropped_rows: int = Field(default=0, alias="droppedRows")
    """Rows, the oldest, that had to make room."""
    dropped: int = 0
    """Decisions in them."""
    dropped_bytes: int = Field(default=0, alias="droppedBytes")

    @classmethod
    def of(cls, logged: Logged | None) -> Self:
        """In the terms of the API."""
        if logged is None:
            return cls()
        return cls(
            suppressed=logged.suppressed,
            dropped_rows=logged.dropped_rows,
            dropped=logged.dropped,
            dropped_bytes=logged.dropped_bytes,
        )


class NetworkDecisions(_Answer):
    """A page of a sandbox's decision log."""

    decisions: list[NetworkDecision]
    """What was seen first, last."""
    not_recorded: NotRecorded = Field(alias="notRecorded")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which decisions a live reader wants."""

    allowed: bool | None
    protocol: str | None
    name: str | None
    destination: str | None
    reason: Reason | None

    def admits(self, subject: Subject) -> bool:
        """Is it one of them?"""
        pairs = (
            (self.allowed, subject.allowed),
            (self.protocol, subject.protocol),
            (self.name, subject.name),
            (self.destination, subject.destination),
            (self.reason, subject.reason),
        )
        return all(wanted is None or wanted == value for wanted, value in pairs)


@router.get(
    "/sandboxes/{sandbox_id}/network/decisions",
    response_model=NetworkDecisions,
    responses={
        200: {
            "headers": _PAGED,
            "content": {
                EVENT_STREAM: {
                    "schema": {
                        "type": "string",
                        "description": "Events `decision` (a NetworkDecision), `missed` (how many "
                        "the reader was too slow for) and `end` (the sandbox is gone).",
                    }
                }
            },
        }
    },
)
async def decisions(
    sandbox_id: LoggedId,
    served: Served,
    response: Response,
    verdict: Verdict | None = None,
    protocol: Annotated[str | None, Query(pattern="^[a-z0-9]{1,16}$")] = None,
    name: Annotated[str | None, Query(max_length=255)] = None,
    destination: IPv4Address | None = None,
    reason: Reason | None = None,
    since: Annotated[str | None, Query(description="RFC 3339")] = None,
    until: Annotated[str | None, Query(description="RFC 3339")] = None,
    limit: Annotated[int, Query(ge=1, le=PAGE)] = 100,
    next_page: Annotated[str | None, Query(alias="nextToken")] = None,
    follow: Annotated[bool, Query(description="As `Accept: text/event-stream`.")] = False,
    accept: Annotated[str, Header(include_in_schema=False)] = "",
) -> NetworkDecisions | Response:
    """What was decided for the traffic of a sandbox, also of one that ended within seven days.

    Added up; what was seen first comes last. With `follow`, what is decided from now on, live.
    """
    try:
        moments = [parse_moment(since, "since"), parse_moment(until, "until")]
        before = _parse_token(next_page)
    except BadQuery as error:
        raise ApiError(400, str(error)) from error
    wanted = Wanted(
        allowed=None if verdict is None else verdict == "allow",
        protocol=protocol,
        name=None if name is None else normalise_name(name) or name,
        destination=None if destination is None else str(destination),
        reason=reason,
    )
    if follow or EVENT_STREAM in accept:
        if since or until or next_page:
            raise ApiError(400, "since, until and nextToken do not go with a live stream")
        return _stream(served, sandbox_id, wanted)
    rows, logged = await served.decisions.find(
        DecisionQuery(
            sandbox_id=sandbox_id,
            # One more than asked for tells whether there is another page.
            limit=limit + 1,
            allowed=wanted.allowed,
            protocol=wanted.protocol,
            name=wanted.name,
            destination=wanted.destination,
            reason=wanted.reason,
            since=None if moments[0] is None else moments[0].timestamp(),
            until=None if moments[1] is None else moments[1].timestamp(),
            before=before,
        )
    )
    if len(rows) > limit:
        rows = rows[:limit]
        response.headers["X-Next-Token"] = str(rows[-1].id)
    return NetworkDecisions(
        decisions=[NetworkDecision.of(row.subject, row.sum) for row in rows],
        not_recorded=NotRecorded.of(logged),
    )


def _parse_token(value: str | None) -> int | None:
    if not value:
        return None
    if value.isascii() and value.isdigit() and len(value) < 19:
        return int(value)
    raise BadQuery(
        f"invalid nextToken {value[:100]!r}: pass on the X-Next-Token header of the page before"
    )


def _stream(served: Services, sandbox_id: str, wanted: Wanted) -> StreamingResponse:
    served.node.observe(sandbox_id)
    if served.decisions.tails >= MAX_TAILS:
        raise ApiError(
            429, f"{MAX_TAILS} readers are told live already; close one, or ask for pages"
        )
    events = _events(served.decisions, served.node, sandbox_id, wanted)
    return StreamingResponse(events, media_type=EVENT_STREAM)


async def _events(
    hub: DecisionHub, node: Node, sandbox_id: str, wanted: Wanted
) -> AsyncIterator[bytes]:
    tail = hub.watch(sandbox_id)  # here, so that what is never begun needs no end
    try:
        yield b": live\n\n"
        heard = time.monotonic()
        while True:
            found, missed = await tail.take(_LOOK_SECONDS)
            chunks = [
                _event("decision", NetworkDecision.of(subject, amount).model_dump_json())
                for subject, amount in found
                if wanted.admits(subject)
            ]
            if missed:
                chunks.append(_event("missed", json.dumps({"missed": missed})))
            if chunks:
                heard = time.monotonic()
                yield b"".join(chunks)
            elif time.monotonic() - heard >= HEARTBEAT_SECONDS:
                heard = time.monotonic()
                yield b": nothing new\n\n"
            if not found and not _is_there(node, sandbox_id):
                yield _event("end", "{}")
                return
    finally:
        hub.unwatch(tail)


def _event(kind: str, data: str) -> bytes:
    return f"event: {kind}\ndata: {data}\n\n".encode()


def _is_there(node: Node, sandbox_id: str) -> bool:
    try:
        node.observe(sandbox_id)
    except SandboxNotFound:
        return False
    return True
