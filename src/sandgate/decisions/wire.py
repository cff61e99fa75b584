"""How decisions travel to the control process: JSON in datagrams. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field

from sandgate.decisions.tally import LONGEST_NAME, Subject, Sum
from sandgate.reasons import Reason

MAX_DATAGRAM = 128 * 1024
"""Bytes; the kernel lets a socket send more at once."""
_ROWS = 50
"""Sums in one datagram: with the longest names they fit."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one process tells at once."""

    source: str
    """Which process: `egress` or `recorder`."""
    sums: Sequence[tuple[Subject, Sum]] = ()
    unrecorded: Mapping[str, int] = field(default_factory=dict)
    """By sandbox: decisions of which nothing else is known."""
    gauges: Mapping[str, int] = field(default_factory=dict)
    """Numbers about the process as they are now."""


def encode(batch: Batch) -> Iterator[bytes]:
    """Datagrams that hold the batch."""
    rows = [[*subject, *astuple(amount)] for subject, amount in batch.sums]
    rest: dict[str, object] = {"unrecorded": batch.unrecorded, "gauges": batch.gauges}
    for start in range(0, max(1, len(rows)), _ROWS):
        message = {"source": batch.source, "sums": rows[start : start + _ROWS], **rest}
        yield json.dumps(message, separators=(",", ":")).encode()
        rest = {}


def decode(datagram: bytes) -> Batch:
    """The inverse, for one datagram. Raises ValueError on anything malformed."""
    try:
        message = json.loads(datagram)
        sums = []
        for row in message["sums"]:
            sandbox_id, protocol, destination, port, name, allowed, reason, rule, reported = row[:9]
            first, last, *counts = row[9:]
            subject = Subject(
                str(sandbox_id),
                str(protocol),
                str(destination),
                int(port),
                None if name is None else str(name)[:LONGEST_NAME],
                allowed is True,
                Reason(reason),
                None if rule is None else str(rule),
                reported is True,
            )
            sums.append((subject, Sum(float(first), float(last), *map(int, counts))))
        return Batch(
            source=str(message["source"]),
            sums=sums,
            unrecorded={str(key): int(n) for key, n in message.get("unrecorded", {}).items()},
            gauges={str(key): int(n) for key, n in message.get("gauges", {}).items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"malformed batch of decisions: {error!r}") from None
