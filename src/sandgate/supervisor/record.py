"""What a running node says of itself, for `status`, `env` and the node that takes over from it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sandgate.durable import replace_file
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.processes import ProcessId


class ComponentRecord(BaseModel):
    """One component at one moment."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int | None
    """None while it waits to be started again."""
    restarts: int
    uptime: float | None
    """Seconds at the time of writing; None if it does not run."""


class NodeRecord(BaseModel):
    """One node. Holds no secret."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: str
    supervisor: ProcessId
    """Who wrote it. A record of a supervisor that was killed must not be taken for a new one's."""
    phase: Literal["starting", "ready", "stopping"]
    domain: str
    """With the port, if that is not 443: what the SDKs are given as `E2B_DOMAIN`."""
    https_port: int
    listen: IPv4Address
    host: str
    """Name the API answers to, without the port."""
    trusted: Path
    """PEM file by which the node's own certificate can be verified."""
    ca_bundle: Path | None
    """The machine's trust anchors and the node's CA; None with the operator's certificate."""
    ca: Path | None
    """The node's CA alone; None with the operator's certificate."""
    build: str = ""
    """Which program runs it (:func:`sandgate.supervisor.build.build_id`)."""
    managed: bool = False
    """Did a service manager start it, which would start it again?"""
    listeners: tuple[int, ...] = ()
    """Descriptors, of the supervisor and of HAProxy, of the sockets that both listen on."""
    components: Sequence[ComponentRecord] = ()

    def write(self, path: Path) -> None:
        """Replace the record at `path`."""
        replace_file(path, self.model_dump_json().encode(), synced=False)

    @classmethod
    def read(cls, path: Path) -> NodeRecord | None:
        """The record at `path`, if there is a usable one. Raises PermissionError."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except PermissionError:
            raise
        except (OSError, ValidationError):
            return None


def running_node(layout: Layout) -> tuple[ProcessId | None, NodeRecord | None]:
    """The supervisor that runs now, and its record once it has written one.

    Raises PermissionError for users other than root.
    """
    supervisor = layout.supervisor()
    if supervisor is None:
        return None, None
    record = NodeRecord.read(layout.record)
    return supervisor, record if record is not None and record.supervisor == supervisor else None


def component_records(named: Sequence[tuple[str, ProcessId | None, int]]) -> list[ComponentRecord]:
    """Records of components given as name, process and count of restarts."""
    return [
        ComponentRecord(
            name=name,
            pid=process.pid if process else None,
            restarts=restarts,
            uptime=round(process.uptime(), 1) if process else None,
        )
        for name, process, restarts in named
    ]


def public_domain(domain: str, port: int) -> str:
    """The domain as clients must write it."""
    return domain if port == 443 else f"{domain}:{port}"
