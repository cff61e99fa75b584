"""`python -m sandgate.runtime`: the launcher process. Configured by one JSON object on stdin."""

from __future__ import annotations

import gc
import json
import logging
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sandgate import templates
from sandgate.guard import AddressGuard
from sandgate.network import HostNetwork, NamespaceInUseError, NetworkConfig, conntrack
from sandgate.refusal import refuse
from sandgate.runtime import linux, seccomp
from sandgate.runtime.assembler import start_assembler
from sandgate.runtime.cells import Base, CellKind
from sandgate.runtime.cgroups import (
    CgroupError,
    Cgroups,
    Limits,
    favor_dynamic_changes,
    find_cgroups,
)
from sandgate.runtime.children import Child, seal_imports
from sandgate.runtime.factory import CellFactory
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Interpreters
from sandgate.runtime.jobs import Site
from sandgate.runtime.launcher import Launcher
from sandgate.runtime.leaks import Leaks
from sandgate.runtime.peers import listen
from sandgate.runtime.pool import Pool, default_size
from sandgate.runtime.records import Records
from sandgate.settings import Settings

GATEWAY_PORT = 15001
"""TCP port of the egress gateway's listener, at an address nothing else uses."""

_POOL_TEMPLATE = "base"
_AHEAD = 4
"""Pools' worth of slots for which what takes no memory to speak of is made ahead."""
_STOP = (signal.SIGTERM, signal.SIGINT)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LauncherConfig:
    """What the supervisor tells the launcher."""

    socket: Path
    settings: Settings
    https_port: int
    gateway_uid: int
    upstream_dns: tuple[IPv4Address, ...]
    node_layer: Path | None
    """Layer above every template: what all sandboxes of this node share."""

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LauncherConfig:
        """Raises ValueError or KeyError on anything malformed."""
        layer = data.get("node_layer")
        return cls(
            socket=Path(data["socket"]),
            settings=Settings.model_validate(data["settings"]),
            https_port=int(data["https_port"]),
            gateway_uid=int(data["gateway_uid"]),
            upstream_dns=tuple(IPv4Address(address) for address in data["upstream_dns"]),
            node_layer=Path(layer) if layer else None,
        )


def main() -> None:
    """Run until SIGTERM, then end all sandboxes and take the network down."""
    logging.basicConfig(level=logging.INFO, format="launcher %(levelname)s %(message)s")
    # Until there is something to take down, there must be nothing half made.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    config = LauncherConfig.from_json(json.load(sys.stdin))
    settings = config.settings
    with _needed("namespaces"):
        # Mounts made here must not appear on the machine, nor the machine's later ones here.
        linux.unshare(linux.CLONE_NEWNS)
        linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    maker = start_assembler()
    with _needed("control groups"):
        cgroups = find_cgroups(settings.node_id, settings.data_dir / "cgroup")
        cgroups.setup()
    try:
        _serve(config, cgroups, maker)
    finally:
        cgroups.teardown()
    config.socket.unlink(missing_ok=True)


def _serve(config: LauncherConfig, cgroups: Cgroups, maker: Child) -> None:
    settings = config.settings
    network = HostNetwork(_network_config(config))
    scratch = settings.data_dir / "scratch"
    images = Images(settings.data_dir)
    program = seccomp.compile_filter()
    pool_size = default_size(_memory_mb()) if settings.pool_size is None else settings.pool_size
    factory = CellFactory(
        network=network,
        cgroups=cgroups,
        records=Records(settings.data_dir / "cells"),
        images=images,
        scratch=scratch,
        max_cells=settings.max_sandboxes + 2 * pool_size,
    )
    factory.setup()
    adopted = factory.adopt()
    with _needed("nftables and links"):
        network.setup({cell.slot: cell.policy for cell in adopted})
    if not favor_dynamic_changes(scratch / "root"):
        _log.warning("the kernel refuses favordynmods: creating sandboxes takes 10-30 ms more")
    service = pwd.getpwnam(settings.service_user)
    launcher = Launcher(
        factory=factory,
        network=network,
        cgroups=cgroups,
        images=images,
        leaks=Leaks(data_dir=settings.data_dir, cgroups=cgroups, images=images, network=network),
        listener=listen(config.socket, group=service.pw_gid),
        find_base=_base_finder(config),
        interpreters=lambda selector: Interpreters(selector, scratch, program),
        pool=Pool(
            pool_size,
            CellKind(
                _POOL_TEMPLATE,
                settings.disk_mb,
                Limits(settings.cpu_count, settings.memory_mb, settings.max_pids),
            ),
        ),
        maker=maker,
        site=Site(
            data_dir=settings.data_dir,
            scratch=scratch,
            id_base=settings.uid_base,
            cgroups=cgroups.to_json(),
            links=network.config.links,
            seccomp=program,
            ahead=min(_AHEAD * pool_size, network.config.slots),
        ),
        allowed_uids=frozenset({0, service.pw_uid}),
    )
    wakeup = _wakeup_on(_STOP, launcher.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    seal_imports()
    gc.collect()
    gc.freeze()
    launcher.run(wakeup, adopted)
    network.teardown()


def _memory_mb() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


@contextmanager
def _needed(what: str) -> Iterator[None]:
    """What fails here fails at every start, and only the operator can do something about it."""
    try:
        yield
    except NamespaceInUseError as error:
        refuse(str(error))
    except (CgroupError, OSError) as error:
        refuse(f"the machine does not offer {what}: {error}; `sudo sandgate doctor` names the fix")


def _wakeup_on(signals: tuple[signal.Signals, ...], callback: Callable[[], None]) -> socket.socket:
    """Run `callback` on any of `signals`; the returned socket then is readable."""
    read, write = socket.socketpair()
    for end in (read, write):
        end.setblocking(False)
    signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    write.detach()  # owned by the signal module from here on
    for number in signals:
        signal.signal(number, lambda *_: callback())
    return read


def _network_config(config: LauncherConfig) -> NetworkConfig:
    settings = config.settings
    guard = AddressGuard(settings.address_range, settings.internal_allow)
    return NetworkConfig(
        sandboxes=settings.address_range,
        ingress_address=settings.ingress_address,
        https_port=config.https_port,
        gateway_address=settings.gateway_address,
        gateway_port=GATEWAY_PORT,
        closed=guard.closed,
        gateway_uid=config.gateway_uid,
        upstream_dns=config.upstream_dns,
        limits=settings.traffic_limits,
        max_sandboxes=settings.max_sandboxes,
        tracked=conntrack.table_size(),
    )


def _base_finder(config: LauncherConfig) -> Callable[[str], Base | None]:
    above = () if config.node_layer is None else (config.node_layer,)

    def find(name: str) -> Base | None:
        template = templates.load(config.settings.data_dir).get(name)
        if template is None:
            return None
        return Base((*above, *template.layers), template.interpreter)

    return find


if __name__ == "__main__":
    os.umask(0o077)
    main()
