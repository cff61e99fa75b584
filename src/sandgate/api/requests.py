"""Bodies of requests (wire contract, 2.3, 2.4 and 2.7).

Fields that Sandgate does not know are refused: a setting of a gate that is silently ignored is an
open door. What SDKs send without being asked (`autoPause: false`, empty objects) passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, Strict, model_validator

from sandgate.api.errors import ApiError
from sandgate.api.fields import Env, Flag, ModeName, NotYet, Port, Seconds, Text, refuse
from sandgate.policy import Mode
from sandgate.store import NetworkConfig

MODE_KEY = "sandgate.network-mode"
"""Key of the metadata that stands for `network.mode`, which the SDKs do not pass on."""

_AT_CREATE = "can be given at create only; leave it out"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class _Egress(_Body):
    allow_out: list[Text] | None = Field(default=None, alias="allowOut")
    """Addresses, CIDR ranges, names and `*.` wildcards, these two also with `:port`.

    They win over `denyOut`.
    """
    deny_out: list[Text] | None = Field(default=None, alias="denyOut")
    """Addresses and CIDR ranges."""
    rules: Annotated[Any, NotYet("rules", (None, {}))] = None
    egress_proxy: Annotated[Any, NotYet("egressProxy")] = Field(default=None, alias="egressProxy")
    dns_servers: list[Text] | None = Field(default=None, alias="dnsServers")
    """IPv4 addresses of resolvers instead of 8.8.8.8, where names are allowed."""
    mode: ModeName | None = None
    """`report`: what the policy does not allow passes, and is recorded."""


class NetworkBody(_Egress):
    """`network` at create."""

    allow_public_traffic: Flag | None = Field(default=None, alias="allowPublicTraffic")
    """False: all ports but envd's need the `trafficAccessToken` of the answer."""
    mask_request_host: Text | None = Field(default=None, alias="maskRequestHost")
    """What the Host header becomes; `${PORT}` is replaced."""
    https_ports: list[Port] | None = Field(default=None, alias="httpsPorts")
    """Ports whose servers speak HTTPS themselves."""


class NetworkUpdateBody(_Egress):
    """`PUT /sandboxes/{id}/network`: what is left out is cleared."""

    allow_internet_access: Flag | None = None
    allow_public_traffic: Annotated[Any, NotYet("allowPublicTraffic", why=_AT_CREATE)] = Field(
        default=None, alias="allowPublicTraffic"
    )
    mask_request_host: Annotated[Any, NotYet("maskRequestHost", why=_AT_CREATE)] = Field(
        default=None, alias="maskRequestHost"
    )
    https_ports: Annotated[Any, NotYet("httpsPorts", (None, []), _AT_CREATE)] = Field(
        default=None, alias="httpsPorts"
    )


class NetworkModeBody(_Body):
    """`PATCH /sandboxes/{id}/network`."""

    mode: ModeName


class AutoResume(_Body):
    """`autoResume` at create."""

    enabled: Flag
    """True: a request to one of its ports resumes a paused sandbox."""


class _Create(_Body):
    template_id: Text = Field(alias="templateID", min_length=1, max_length=255)
    allow_internet_access: Flag | None = None
    network: NetworkBody | None = None
    metadata: dict[Text, Text] | None = None
    env_vars: Env | None = Field(default=None, alias="envVars")
    auto_pause: Flag | None = Field(default=None, alias="autoPause")
    """True: it is paused when its time is over, not ended."""
    auto_pause_memory: Flag | None = Field(default=None, alias="autoPauseMemory")
    """False: such a pause keeps the file system only."""
    auto_resume: AutoResume | None = Field(default=None, alias="autoResume")
    mcp: Annotated[Any, NotYet("mcp", (None, {}), service=True)] = None
    iam: Annotated[Any, NotYet("iam", (None, {}, {"tokens": {}}))] = None
    volume_mounts: Annotated[Any, NotYet("volumeMounts", (None, []), service=True)] = Field(
        default=None, alias="volumeMounts"
    )

    @model_validator(mode="after")
    def _check_pausing(self) -> Self:
        if self.auto_pause_memory is False:
            if self.auto_pause is not True:
                raise refuse("'autoPauseMemory' means something only with 'autoPause': true")
            if self.auto_resume is not None and self.auto_resume.enabled:
                raise refuse(
                    "'autoPauseMemory': false cannot be had together with 'autoResume': a sandbox "
                    "without its processes answers no request; leave one of them out"
                )
        return self


class CreateBody(_Create):
    """`POST /v2/sandboxes`."""

    timeout: Seconds | None = None
    secure: Annotated[
        Any,
        NotYet("secure", (None, True), "cannot be switched off: sandboxes are always secured"),
    ] = None


class CreateBodyV1(_Create):
    """`POST /sandboxes`."""

    timeout: Seconds = 15
    secure: Flag | None = None


class ConnectBody(_Body):
    """`POST /v2/sandboxes/{id}/connect`."""

    timeout: Seconds = 300
    memory: Flag | None = None
    """How a paused sandbox is resumed; means nothing for one that runs."""


class ConnectBodyV1(_Body):
    """`POST /sandboxes/{id}/connect`."""

    timeout: Seconds


class ResumeBody(_Body):
    """`POST /sandboxes/{id}/resume`."""

    timeout: Seconds = 15
    auto_pause: Annotated[Any, NotYet("autoPause", (None, False), _AT_CREATE)] = Field(
        default=None, alias="autoPause"
    )


class PauseBody(_Body):
    """`POST /sandboxes/{id}/pause`."""

    memory: Flag | None = None
    """False: keep the file system only."""
    require_healthy_guest: Flag | None = Field(default=None, alias="requireHealthyGuest")


class SnapshotBody(_Body):
    """`POST /sandboxes/{id}/snapshots`."""

    name: Text | None = None
    memory: Flag | None = None
    """Memory is never part of a snapshot, whatever is asked for."""


class ForkBody(_Body):
    """`POST /sandboxes/{id}/fork`."""

    timeout: Seconds = 15
    count: Annotated[int, Strict(), Field(ge=1, le=20)] = 1


class TimeoutBody(_Body):
    """`POST /sandboxes/{id}/timeout`."""

    timeout: Seconds


class RefreshBody(_Body):
    """`POST /sandboxes/{id}/refreshes`."""

    duration: Annotated[Seconds, Field(ge=0, le=3600)] = 15


def network_config(body: NetworkBody | NetworkUpdateBody | None) -> NetworkConfig:
    """What the user wrote, as the node takes it."""
    if body is None:
        return NetworkConfig()
    ingress = body if isinstance(body, NetworkBody) else NetworkBody()
    return NetworkConfig(
        allow_out=None if body.allow_out is None else tuple(body.allow_out),
        deny_out=None if body.deny_out is None else tuple(body.deny_out),
        allow_public_traffic=ingress.allow_public_traffic,
        mask_request_host=ingress.mask_request_host,
        dns_servers=None if body.dns_servers is None else tuple(body.dns_servers),
        mode=body.mode,
        https_ports=None if ingress.https_ports is None else tuple(ingress.https_ports),
    )


def created_network(body: CreateBody | CreateBodyV1) -> NetworkConfig:
    """The network settings of a new sandbox, of which its metadata may give the mode.

    Raises :class:`ApiError`.
    """
    network, given = network_config(body.network), (body.metadata or {}).get(MODE_KEY)
    if given is None:
        return network
    if given not in tuple(Mode):
        raise ApiError(
            400, f"invalid value {given[:100]!r} of metadata {MODE_KEY!r}: use enforce or report"
        )
    if network.mode not in (None, given):
        raise ApiError(
            400,
            f"metadata {MODE_KEY!r} says {given!r}, but network.mode {network.mode!r}: give one",
        )
    return replace(network, mode=given)
