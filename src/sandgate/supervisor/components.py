"""The components of a node, as the supervisor runs them."""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from sandgate.accounts import hash_key
from sandgate.egress.gateway import GatewayConfig
from sandgate.guard import AddressGuard
from sandgate.ingress.certificates import Certificates
from sandgate.ingress.config import IngressConfig, command, maxconn_for, write_files
from sandgate.recorder.process import RecorderConfig
from sandgate.settings import Settings
from sandgate.supervisor.component import Component
from sandgate.supervisor.layout import Accounts, Layout

OUTLIVED = frozenset({"launcher"})
"""Components whose descendants (sandboxes) live on when they die."""

_LAUNCHER_STOP_SECONDS = 90.0
"""Ending a thousand sandboxes takes a while."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the components are made from."""

    settings: Settings
    layout: Layout
    accounts: Accounts
    api_key: str
    https_port: int
    domain: str
    """As clients write it, with a port that is not 443."""
    certificates: Certificates
    upstream_dns: Sequence[IPv4Address]
    node_layer: Path
    public_listener: int
    """Descriptor of the socket that HAProxy takes clients' connections from."""
    inner_listener: int
    """The same for sandboxes' connections to sandbox URLs."""


def components(
    parts: Parts, probes: Mapping[str, Callable[[], str | None]]
) -> tuple[Component, ...]:
    """In the order of their start. Writes the files that HAProxy reads."""
    launcher = Component(
        name="launcher",
        command=_python("sandgate.runtime"),
        waits=True,
        probe=probes["launcher"],
        config=json.dumps(launcher_config(parts)).encode(),
        stop_seconds=_LAUNCHER_STOP_SECONDS,
        outlived=True,
        makes=(parts.layout.socket("launcher"),),
    )
    egress = Component(
        name="egress",
        command=_python("sandgate.egress"),
        waits=True,
        probe=probes["egress"],
        config=egress_config(parts).to_json().encode(),
        makes=(parts.layout.socket("egress"),),
    )
    recorder = Component(
        name="recorder",
        command=_python("sandgate.recorder"),
        waits=True,
        probe=probes["recorder"],
        config=recorder_config(parts).to_json().encode(),
        makes=(parts.layout.socket("recorder"), parts.layout.socket("decisions")),
    )
    ingress = ingress_config(parts)
    write_files(ingress)
    haproxy = Component(
        name="haproxy",
        command=tuple(command(ingress)),
        probe=probes["haproxy"],
        piped=True,
        drain=signal.SIGUSR1,
        makes=(parts.layout.socket("haproxy"),),
        sockets=(parts.public_listener, parts.inner_listener),
    )
    control = Component(
        name="control",
        command=_python("sandgate.api"),
        waits=True,
        probe=probes["control"],
        config=json.dumps(control_config(parts)).encode(),
        makes=(parts.layout.socket("control"), parts.layout.socket("wake")),
    )
    return (launcher, egress, recorder, haproxy, control)


def launcher_config(parts: Parts) -> dict[str, object]:
    """What the launcher reads (see `sandgate.runtime.__main__.LauncherConfig`)."""
    return {
        "socket": str(parts.layout.socket("launcher")),
        "settings": parts.settings.model_dump(mode="json"),
        "https_port": parts.https_port,
        "gateway_uid": parts.accounts.egress.uid,
        "upstream_dns": [str(address) for address in parts.upstream_dns],
        "node_layer": str(parts.node_layer),
    }


def egress_config(parts: Parts) -> GatewayConfig:
    """What the egress gateway is told."""
    settings = parts.settings
    return GatewayConfig(
        gateway_address=settings.gateway_address,
        ingress_address=settings.ingress_address,
        https_port=parts.https_port,
        domain=settings.domain,
        control_socket=parts.layout.socket("egress"),
        decisions_socket=parts.layout.socket("decisions"),
        sandboxes=settings.address_range,
        upstream_dns=tuple(parts.upstream_dns),
        internal_allow=settings.internal_allow,
        limits=settings.traffic_limits,
        user=parts.accounts.egress.name,
        control_user=parts.accounts.control.name,
    )


def recorder_config(parts: Parts) -> RecorderConfig:
    """What the recorder is told."""
    settings = parts.settings
    return RecorderConfig(
        control_socket=parts.layout.socket("recorder"),
        decisions_socket=parts.layout.socket("decisions"),
        sandboxes=settings.address_range,
        closed=AddressGuard(settings.address_range, settings.internal_allow).closed.networks,
        ingress_address=settings.ingress_address,
        https_port=parts.https_port,
        user=parts.accounts.recorder.name,
        control_user=parts.accounts.control.name,
    )


def control_config(parts: Parts) -> dict[str, object]:
    """What the API reads (see `sandgate.api.process.ControlConfig`): of the key, the hash."""
    return {
        "settings": parts.settings.model_dump(mode="json"),
        "public_domain": parts.domain,
        "api_key_hash": hash_key(parts.api_key),
        "proxy_user": parts.accounts.proxy.name,
        "egress_user": parts.accounts.egress.name,
        "recorder_user": parts.accounts.recorder.name,
    }


def ingress_config(parts: Parts) -> IngressConfig:
    """What HAProxy's configuration is rendered from."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return IngressConfig(
        directory=parts.layout.haproxy_dir,
        domain=parts.settings.domain,
        listen=parts.settings.listen,
        https_port=parts.https_port,
        certificate=parts.certificates.chain,
        control_socket=parts.layout.socket("control"),
        admin_socket=parts.layout.socket("haproxy"),
        wake_socket=parts.layout.socket("wake"),
        ingress_address=parts.settings.ingress_address,
        maxconn=maxconn_for(limit),
        # With two, HAProxy 2.6 now and then stops reading from one of its own hops for good while
        # a command prints without pause (seen after 2 to 5 s of 400 MB/s; never with one).
        threads=1,
        user=parts.accounts.proxy.name,
        group=parts.accounts.proxy.group,
        admin_user=parts.accounts.control.name,
        public_listener=parts.public_listener,
        inner_listener=parts.inner_listener,
        chroot=parts.layout.run_dir,
    )


def _python(module: str) -> tuple[str, ...]:
    """Isolated, so that neither the working directory nor variables can change what is imported."""
    return (sys.executable, "-I", "-u", "-m", module)
