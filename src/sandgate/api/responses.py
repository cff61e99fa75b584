"""Bodies of answers (wire contract, 2.3, 2.5 and 2.6). Absent is written by leaving out."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sandgate.api.fields import ModeName
from sandgate.reasons import Reason
from sandgate.store import SandboxRecord


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True, serialize_by_alias=True)


class SandboxAnswer(_Answer):
    """What create and connect answer."""

    template_id: str = Field(alias="templateID")
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(alias="clientID")
    envd_version: str = Field(alias="envdVersion")
    alias: str
    domain: str
    envd_access_token: str | None = Field(default=None, alias="envdAccessToken")
    traffic_access_token: str | None = Field(default=None, alias="trafficAccessToken")


class NetworkExplanation(_Answer):
    """What would become of a connection; the fields are those of a decision."""

    verdict: Literal["allow", "deny"]
    reason: Reason
    rule: str | None
    reported: bool
    path: Literal["resolver", "gateway", "kernel"]
    """Who would decide: DNS, the gateway (by name) or the kernel (by address)."""
    protocol: str
    name: str | None
    destination: str | None
    """Where the name leads; null if the sandbox would not be told."""
    port: int


class SnapshotAnswer(_Answer):
    """A snapshot."""

    snapshot_id: str = Field(alias="snapshotID")
    names: list[str]


class ForkError(_Answer):
    """Why one of the forks could not be started."""

    code: int
    message: str


class ForkAnswer(_Answer):
    """One of the forks: one of the two fields is set."""

    sandbox: SandboxAnswer | None = None
    error: ForkError | None = None


class ListedSandbox(_Answer):
    """An item of a list."""

    template_id: str = Field(alias="templateID")
    alias: str
    sandbox_id: str = Field(alias="sandboxID")
    client_id: str = Field(alias="clientID")
    started_at: datetime = Field(alias="startedAt")
    end_at: datetime = Field(alias="endAt")
    cpu_count: int = Field(alias="cpuCount")
    memory_mb: int = Field(alias="memoryMB")
    disk_size_mb: int = Field(alias="diskSizeMB")
    metadata: dict[str, str]
    state: Literal["running", "paused"]
    envd_version: str = Field(alias="envdVersion")


class Network(_Answer):
    """The network settings as they were given."""

    allow_out: list[str] | None = Field(default=None, alias="allowOut")
    deny_out: list[str] | None = Field(default=None, alias="denyOut")
    allow_public_traffic: bool | None = Field(default=None, alias="allowPublicTraffic")
    mask_request_host: str | None = Field(default=None, alias="maskRequestHost")
    dns_servers: list[str] | None = Field(default=None, alias="dnsServers")
    mode: ModeName | None = None
    https_ports: list[int] | None = Field(default=None, alias="httpsPorts")


class Lifecycle(_Answer):
    """What happens when time is up."""

    on_timeout: Literal["kill", "pause"] = Field(alias="onTimeout")
    auto_resume: bool = Field(alias="autoResume")


class SandboxDetail(ListedSandbox):
    """What info answers."""

    domain: str
    envd_access_token: str | None = Field(default=None, alias="envdAccessToken")
    allow_internet_access: bool | None = Field(default=None, alias="allowInternetAccess")
    network: Network | None = None
    lifecycle: Lifecycle
    pause_mode: Literal["full", "filesystem"] | None = Field(default=None, alias="pauseMode")
    """What the pause kept; while paused."""


class Identity(BaseModel):
    """What all answers say of the node."""

    model_config = ConfigDict(frozen=True)

    client_id: str
    domain: str
    """Domain of sandbox URLs, with the port if it is not 443."""

    def sandbox(self, record: SandboxRecord) -> SandboxAnswer:
        """The answer of create and connect."""
        return SandboxAnswer(
            template_id=record.origin or record.template,
            sandbox_id=record.sandbox_id,
            client_id=self.client_id,
            envd_version=record.envd_version,
            alias=record.template,
            domain=self.domain,
            envd_access_token=record.envd_token,
            traffic_access_token=record.traffic_token,
        )

    def listed(self, record: SandboxRecord) -> ListedSandbox:
        """An item of a list."""
        return ListedSandbox.model_validate(self._common(record))

    def detail(self, record: SandboxRecord) -> SandboxDetail:
        """The answer of info."""
        network = record.network.to_wire()
        return SandboxDetail.model_validate(
            {
                **self._common(record),
                "domain": self.domain,
                "envdAccessToken": record.envd_token,
                "allowInternetAccess": record.internet,
                "network": network or None,
                "lifecycle": {
                    "onTimeout": "pause" if record.lifecycle.auto_pause else "kill",
                    "autoResume": record.lifecycle.auto_resume,
                },
                "pauseMode": record.pause_mode,
            }
        )

    def _common(self, record: SandboxRecord) -> dict[str, object]:
        return {
            "templateID": record.origin or record.template,
            "alias": record.template,
            "sandboxID": record.sandbox_id,
            "clientID": self.client_id,
            "startedAt": record.started_at,
            "endAt": record.end_at,
            "cpuCount": record.cpu_count,
            "memoryMB": record.memory_mb,
            "diskSizeMB": record.disk_mb,
            "metadata": dict(record.metadata),
            "state": record.state,
            "envdVersion": record.envd_version,
        }
