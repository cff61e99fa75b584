"""A node's settings: one TOML file and `SANDGATE_*` variables (which win)."""

from __future__ import annotations

import hashlib
import os
import tomllib
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from sandgate.limits import TrafficLimits
from sandgate.policy import normalise_name

DEFAULT_CONFIG = Path("/etc/sandgate/config.toml")
"""Read when no `--config` is given and the file exists."""

ENV_PREFIX = "SANDGATE_"

CONFIG_VARIABLE = "SANDGATE_CONFIG"
"""Variable that names the configuration file where no `--config` can be given."""

PRIVATE_RANGES = tuple(
    IPv4Network(network)
    for network in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
    )
)
"""Where sandboxes may have their addresses: ranges that mean nothing outside (RFC 1918, 6598,
2544)."""

_TEST_PREFIX = "SANDGATE_TEST_"
"""Variables of the test suite; no settings."""

_CommaList = NoDecode

_LIMITS = TrafficLimits()


class SettingsError(ValueError):
    """Settings that cannot be used. The text names each key, its value and the remedy."""


class Settings(BaseSettings):
    """Every key a node understands. Unknown keys are refused."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    data_dir: Path = Path("/var/lib/sandgate")
    """Where the node keeps its state, templates, disks and sockets. One node, one directory."""
    domain: str = "sandgate.localhost"
    """Domain of the API (`api.<domain>`) and of sandbox URLs (`<port>-<id>.<domain>`)."""
    listen: IPv4Address = IPv4Address("127.0.0.1")
    """Address the HTTPS entry listens on. Loopback unless set."""
    https_port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the HTTPS entry. Unset: 443 if free, else 8443 (which then is part of the domain)."""
    tls_cert: Path | None = None
    """PEM certificate chain for `<domain>` and `*.<domain>`. Unset: a local CA is made."""
    tls_key: Path | None = None
    """PEM key that belongs to `tls_cert`."""
    upstream_dns: Annotated[tuple[IPv4Address, ...], _CommaList] = ()
    """Resolvers the gateway asks. Unset: those of the machine's /etc/resolv.conf."""
    address_range: IPv4Network = IPv4Network("198.18.0.0/16")
    """Private range the sandboxes' addresses come from; must not be in use on this machine."""
    internal_allow: Annotated[tuple[IPv4Network, ...], _CommaList] = ()
    """Always-denied ranges opened to all sandboxes by the operator (their policies still apply)."""
    service_user: str = "sandgate"
    """Unprivileged system user that the API runs as. The egress gateway, the recorder and HAProxy
    run as `<service_user>-egress`, `-recorder` and `-proxy`."""
    uid_base: int = Field(default=0x70000000, ge=100_000, le=0x7FFE0000)
    """First host uid for sandboxes; each gets a range of 65,536 of its own."""
    debian_mirror: str | None = None
    """Debian mirror that templates are built from. Unset: the build tool's default."""

    max_sandboxes: int = Field(default=1000, ge=1, le=4096)
    """Sandboxes alive at once; more are refused."""
    max_creates_at_once: int = Field(default=256, ge=1)
    """Sandboxes that are being started at once; more are refused until some have started."""
    memory_reserve_mb: int = Field(default=256, ge=0)
    """MiB of the machine's memory that must stay available for a sandbox to be created."""
    disk_reserve_mb: int = Field(default=1024, ge=0)
    """MiB that must stay free in `data_dir` for a sandbox or a snapshot to be made."""
    pool_size: int | None = Field(default=None, ge=0, le=512)
    """Sandboxes kept prepared, so that a create is answered in milliseconds. Unset: 4 % of the
    machine's memory, at 6 MiB for each; 4 at least, 100 at most."""
    default_timeout: int = Field(default=300, ge=1)
    """Seconds a sandbox lives when its creator does not say (v2 API)."""
    max_timeout: int = Field(default=86_400, ge=1)
    """Longest time to live that may be asked for, in seconds."""
    cpu_count: int = Field(default=2, ge=1, le=512)
    """CPUs of one sandbox."""
    memory_mb: int = Field(default=1024, ge=64)
    """Memory limit of one sandbox, MiB."""
    disk_mb: int = Field(default=10_240, ge=64)
    """Disk limit of one sandbox, MiB."""
    max_pids: int = Field(default=1024, ge=16)
    """Processes and threads of one sandbox."""
    max_connections: int = Field(default=_LIMITS.connections, ge=16, le=65_536)
    """Connections that one sandbox may have open to the outside; more are refused."""
    max_new_connections: int = Field(default=_LIMITS.new_connections, ge=1, le=2_000)
    """Connections that one sandbox may open a second; five times as many at once."""
    max_dns_queries: int = Field(default=_LIMITS.dns_queries, ge=1, le=100_000)
    """DNS queries that one sandbox may send a second; five times as many at once."""
    download_mbit: int | None = Field(default=None, ge=1, le=100_000)
    """Megabits a second towards one sandbox, by both doors. Unset: no limit."""
    upload_mbit: int | None = Field(default=None, ge=1, le=100_000)
    """Megabits a second from one sandbox, by both doors. Unset: no limit."""

    @field_validator("upstream_dns", "internal_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @field_validator("data_dir", "tls_cert", "tls_key")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("write an absolute path")
        return value

    @field_validator("domain")
    @classmethod
    def _domain(cls, value: str) -> str:
        name = normalise_name(value)
        if name is None or "." not in name:
            raise ValueError("write a DNS name of at least two labels, without scheme or port")
        return name

    @field_validator("address_range")
    @classmethod
    def _address_range(cls, value: IPv4Network) -> IPv4Network:
        if not 12 <= value.prefixlen <= 27:
            raise ValueError("write a range between a /12 and a /27")
        if not any(value.subnet_of(private) for private in PRIVATE_RANGES):
            raise ValueError(
                f"write a range within {', '.join(map(str, PRIVATE_RANGES))}; in any other are "
                "public addresses, which sandboxes could not reach (the resolver 8.8.8.8 is one)"
            )
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key go together: set both or neither")
        if self.default_timeout > self.max_timeout:
            raise ValueError(
                f"default_timeout ({self.default_timeout}) is above max_timeout "
                f"({self.max_timeout}): lower the first or raise the second"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Sockets, pid files and generated configuration."""
        return self.data_dir / "run"

    @property
    def key_file(self) -> Path:
        """Owners other than the operator, and the hashes of their API keys."""
        return self.data_dir / "keys.json"

    @property
    def node_id(self) -> str:
        """Short name that tells this node's cgroups from those of others on the machine."""
        return hashlib.sha256(os.fsencode(self.data_dir.absolute())).hexdigest()[:8]

    @property
    def traffic_limits(self) -> TrafficLimits:
        """How much of the network one sandbox may use."""
        return TrafficLimits(
            connections=self.max_connections,
            new_connections=self.max_new_connections,
            dns_queries=self.max_dns_queries,
            download_mbit=self.download_mbit,
            upload_mbit=self.upload_mbit,
        )

    @property
    def gateway_address(self) -> IPv4Address:
        """Address in `address_range` that the egress gateway's listeners are bound to."""
        return self.address_range.network_address + 2

    @property
    def ingress_address(self) -> IPv4Address:
        """Address in `address_range` at which sandboxes reach sandbox URLs (and nothing else)."""
        return self.address_range.network_address + 1

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)


def load_settings(config: Path | None = None) -> Settings:
    """Read the settings: variables win over the file, the file over the defaults.

    `config` unset means the file that `SANDGATE_CONFIG` names, else `DEFAULT_CONFIG` if there is
    one. Raises FileNotFoundError for a file that was named and is not there, and
    :class:`SettingsError` for everything else that is wrong.
    """
    if config is None and (named := os.environ.get(CONFIG_VARIABLE)):
        config = Path(named)
    if config is None:
        config = DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    elif not config.exists():
        raise FileNotFoundError(f"configuration file {config} does not exist")
    _refuse_unknown_variables()

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    try:
        return FromFile()
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{config} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"{config} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        where = f"{config} and {ENV_PREFIX}* variables" if config else f"{ENV_PREFIX}* variables"
        lines = [f"  {_explain(detail)}" for detail in error.errors()]
        raise SettingsError("\n".join([f"invalid settings ({where}):", *lines])) from None


def _refuse_unknown_variables() -> None:
    """A misspelt variable would otherwise be a setting that silently does not hold."""
    known = {f"{ENV_PREFIX}{key}".upper() for key in Settings.model_fields} | {CONFIG_VARIABLE}
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(ENV_PREFIX)
        and name.upper() not in known
        and not name.startswith(_TEST_PREFIX)
    )
    if unknown:
        raise SettingsError(
            f"unknown variable {', '.join(unknown)}: unset it, or use one of the documented keys"
        )


def _explain(detail: ErrorDetails) -> str:
    key = str(detail["loc"][0]) if detail["loc"] else ""
    message = detail["msg"].removeprefix("Value error, ")
    if not key:
        return message
    if detail["type"] == "extra_forbidden":
        return f"{key} = {detail['input']!r}: there is no such key; remove it or correct its name"
    if detail["type"] in ("ip_v4_network", "ip_v4_address"):
        message += _address_hint(str(detail["input"]), network=detail["type"] == "ip_v4_network")
    return f"{key} = {detail['input']!r}: {message}"


def _address_hint(value: str, *, network: bool) -> str:
    if not network:
        return "; write an IPv4 address like 192.0.2.1"
    try:
        meant = IPv4Network(value, strict=False)
    except ValueError:
        return "; write an IPv4 range like 10.1.0.0/16"
    return f"; its network address would be {meant}"
