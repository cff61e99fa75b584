"""Query parameters of the lists (wire contract, 2.6). Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from datetime import UTC, datetime
from urllib.parse import parse_qsl, unquote

STATES = frozenset({"running", "paused"})


class BadQuery(ValueError):
    """A query parameter that means nothing. The text says which and why."""


def parse_metadata(value: str | None) -> dict[str, str]:
    """The pairs that must match. Both key and value are percent-encoded inside the form string."""
    if not value:
        return {}
    try:
        pairs = parse_qsl(value, keep_blank_values=True, strict_parsing=True, errors="strict")
        return {
            unquote(key, errors="strict"): unquote(item, errors="strict") for key, item in pairs
        }
    except ValueError as error:
        raise BadQuery(
            f"invalid metadata {value[:100]!r}: {error}; write key=value&key2=value2, each key "
            "and value percent-encoded"
        ) from error


def parse_states(values: Iterable[str]) -> frozenset[str]:
    """`running,paused`, also as repeated parameters; nothing means all."""
    states = {part.strip() for value in values for part in value.split(",") if part.strip()}
    if unknown := sorted(states - STATES):
        raise BadQuery(f"invalid state {unknown[0]!r}: use running, paused or both")
    return frozenset(states) or STATES


def parse_moment(value: str | None, parameter: str = "startedAfter") -> datetime | None:
    """An RFC 3339 moment."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadQuery(
        f"invalid {parameter} {value[:100]!r}: write a moment as in 2026-01-31T12:00:00Z, "
        "with its time zone"
    )


def next_token(moment: datetime, name: str) -> str:
    """What a client sends to get what comes after the item of this moment and name."""
    position = f"{moment.isoformat()} {name}"
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def parse_token(value: str | None) -> tuple[datetime, str] | None:
    """The inverse of :func:`next_token`."""
    if not value:
        return None
    try:
        padded = value + "=" * (-len(value) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
        moment, _, sandbox_id = text.partition(" ")
        started_at = datetime.fromisoformat(moment)
        if started_at.tzinfo is UTC and sandbox_id.isalnum():
            return started_at, sandbox_id
    except (ValueError, binascii.Error):
        pass
    raise BadQuery(
        f"invalid nextToken {value[:100]!r}: pass on the X-Next-Token header of the page before"
    )
