"""The values that the store takes and gives. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sandgate.accounts import OPERATOR


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The network settings of a sandbox as its creator wrote them. None: not given."""

    allow_out: tuple[str, ...] | None = None
    deny_out: tuple[str, ...] | None = None
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    dns_servers: tuple[str, ...] | None = None
    mode: str | None = None
    """`enforce` (which None means) or `report`; Sandgate's own."""
    https_ports: tuple[int, ...] | None = None

    def to_wire(self) -> dict[str, Any]:
        """E2B's `network` object, without the keys that were not given."""
        given = {
            "allowOut": None if self.allow_out is None else list(self.allow_out),
            "denyOut": None if self.deny_out is None else list(self.deny_out),
            "allowPublicTraffic": self.allow_public_traffic,
            "maskRequestHost": self.mask_request_host,
            "dnsServers": None if self.dns_servers is None else list(self.dns_servers),
            "mode": self.mode,
            "httpsPorts": None if self.https_ports is None else list(self.https_ports),
        }
        return {key: value for key, value in given.items() if value is not None}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> NetworkConfig:
        """The inverse of :meth:`to_wire`."""
        allow, deny, servers, ports = (
            data.get(key) for key in ("allowOut", "denyOut", "dnsServers", "httpsPorts")
        )
        return cls(
            allow_out=None if allow is None else tuple(allow),
            deny_out=None if deny is None else tuple(deny),
            allow_public_traffic=data.get("allowPublicTraffic"),
            mask_request_host=data.get("maskRequestHost"),
            dns_servers=None if servers is None else tuple(servers),
            mode=data.get("mode"),
            https_ports=None if ports is None else tuple(ports),
        )


class NoteKind(StrEnum):
    """What a note is about."""

    METRICS = "metrics"
    JOURNAL = "journal"
    REPETITION = "repetition"
    MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Note:
    """Bytes that somebody wants to find again after a restart."""

    written_at: datetime
    data: bytes


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """What happens to a sandbox without anybody asking, as its creator wanted it."""

    timeout: int
    """Seconds to live that were asked for at creation."""
    auto_pause: bool = False
    """Paused when its time is over, instead of ended."""
    auto_pause_memory: bool = True
    """False: such a pause keeps the file system only."""
    auto_resume: bool = False
    """Resumed by a request to one of its ports."""

    def to_json(self) -> dict[str, Any]:
        """The form that is stored."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Lifecycle:
        """The inverse."""
        return cls(**data)


PAUSED_FULL = "full"
"""`pause_mode`: memory and processes are kept."""
PAUSED_FILESYSTEM = "filesystem"
"""`pause_mode`: the file system is kept."""


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """One sandbox: everything needed to describe it, to reach it and to take it over again."""

    sandbox_id: str
    template: str
    state: str
    started_at: datetime
    """With time zone UTC, as is `end_at`."""
    end_at: datetime
    cpu_count: int
    memory_mb: int
    disk_mb: int
    max_pids: int
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    """Environment of every command."""
    network: NetworkConfig
    internet: bool | None
    """`allow_internet_access` as given."""
    envd_version: str
    envd_token: str | None
    """None for a v1 sandbox without `secure`."""
    traffic_token: str | None
    """Set if public traffic is not allowed."""
    lifecycle: Lifecycle
    pause_mode: str | None = None
    """What the pause kept, while paused."""
    origin: str | None = None
    """The snapshot it was made of, if it was."""
    owner: str = OPERATOR
    """Who alone may know of it."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A file system that was kept, to make sandboxes of."""

    snapshot_id: str
    sandbox_id: str
    """Of the sandbox it was taken of, which may be gone."""
    name: str | None
    template: str
    """Whose layers lie below it."""
    disk_mb: int
    created_at: datetime
    owner: str = OPERATOR
    """Whose sandbox it was taken of, and who alone may know of it."""
