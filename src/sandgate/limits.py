"""How much of the network one sandbox may use, as a value. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

BURST_SECONDS = 5
"""What a rate allows in so many seconds may come at once."""


@dataclass(frozen=True, slots=True)
class TrafficLimits:
    """The same for every sandbox of a node; see docs/configuration.md."""

    connections: int = 2048
    """Connections that a sandbox has opened and that are open."""
    new_connections: int = 200
    """A second."""
    dns_queries: int = 200
    """A second."""
    download_mbit: int | None = None
    """Megabits a second towards the sandbox. None: no limit."""
    upload_mbit: int | None = None
    """Megabits a second from the sandbox. None: no limit."""

    def to_json(self) -> dict[str, Any]:
        """The form that travels between processes."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrafficLimits:
        """The inverse of :meth:`to_json`. Raises TypeError on unknown keys."""
        return cls(**data)
