"""`sandgate doctor --leaks`: what is left of sandboxes that are gone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from sandgate.cli.doctor.network import network_config
from sandgate.ingress.layout import ROUTES_MAP
from sandgate.ingress.routes import FILLED
from sandgate.network import HostNetwork, NamespaceInUseError, require_unclaimed
from sandgate.runtime import linux
from sandgate.runtime.cgroups import CgroupError, find_cgroups
from sandgate.runtime.images import Images
from sandgate.runtime.leaks import Leak, Leaks
from sandgate.runtime.protocol import MAX_MESSAGE
from sandgate.settings import Settings
from sandgate.supervisor.background import NodeError, require_root
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.takeover import standing

_APART_SECONDS = 1.5
"""Between two looks: what is only just going is gone at the second."""
_PATIENCE_SECONDS = 30.0
_ROUTE, _MOUNT = "route", "mount"


def look(settings: Settings, *, fix: bool, as_json: bool) -> int:
    """Print what is left over, and with `fix` remove it; the exit status: 1 if some stays.

    Looks in the calling process' network namespace, which must be the node's. Raises NodeError,
    OSError.
    """
    require_root("looking for leaks")
    layout = Layout.of(settings)
    places = _mounts(settings)
    mounts = {(_MOUNT, path) for path in places}
    if fix:
        for path in places:
            linux.unmount(path, linux.MNT_DETACH)
    if standing(layout.pid_dir, ("launcher",)):
        found, removed = _of_running(layout, fix=fix)
    else:
        found, removed = _of_stopped(settings, fix=fix)
    found |= mounts
    if fix:
        removed |= mounts
    _report(found, removed, as_json=as_json)
    return int(bool(found - removed))


def _report(found: set[tuple[str, str]], removed: set[tuple[str, str]], *, as_json: bool) -> None:
    rows = [
        {"kind": kind, "name": name, "removed": (kind, name) in removed}
        for kind, name in sorted(found)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{'removed' if row['removed'] else 'left   '}  {row['kind']}  {row['name']}")
    if not rows:
        click.echo("nothing is left over")
    elif found - removed:
        click.echo("remove it: sandgate doctor --leaks --fix", err=True)


def _mounts(settings: Settings) -> list[str]:
    """Mounts on the machine below the directories where a launcher, which has a mount namespace of
    its own, alone mounts something; the innermost first."""
    own = [f"{settings.data_dir}/{name}/" for name in ("scratch", "cgroup", "cells", "disks")]
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    places = [line.split()[4].replace("\\040", " ") for line in lines]
    return [path for path in reversed(places) if f"{path}/".startswith(tuple(own))]


def _of_running(layout: Layout, *, fix: bool) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Ask the launcher, which alone knows of the cells that are nobody's yet."""
    with closing(_Launcher(layout.socket("launcher"))) as launcher:
        first, rows = set(launcher.leaks()), launcher.stray_routes(layout)
        time.sleep(_APART_SECONDS)
        leaks = [leak for leak in launcher.leaks() if leak in first]
        rows &= launcher.stray_routes(layout)
        gone = launcher.leaks(leaks) if fix and leaks else []
    if fix:
        for name in rows:
            _haproxy(layout, f"del map {_map(layout)} {name}")
    found = {(str(leak.kind), leak.name) for leak in leaks} | {(_ROUTE, name) for name in rows}
    removed = {(str(leak.kind), leak.name) for leak in gone}
    return found, removed | ({(_ROUTE, name) for name in rows} if fix else set())


class _Launcher:
    """The launcher's socket, for a command that may wait."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_PATIENCE_SECONDS)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NodeError(f"the launcher does not answer ({error}); try again") from error

    def close(self) -> None:
        self._socket.close()

    def leaks(self, remove: Iterable[Leak] = ()) -> list[Leak]:
        wanted = [leak.to_json() for leak in remove]
        return [Leak.from_json(item) for item in self._ask("leaks", remove=wanted)["leaks"]]

    def stray_routes(self, layout: Layout) -> set[str]:
        """The names that HAProxy has routes of and nobody else knows."""
        routes = _routes(layout)  # first: a sandbox gets its route last, and loses it first
        known = {item["sandbox_id"] for item in self._ask("running")["sandboxes"]}
        return routes - known - set(self._ask("images")["kept"]) - {FILLED}

    def _ask(self, operation: str, **more: object) -> Any:
        self._socket.send(json.dumps({"id": 1, "op": operation, **more}).encode())
        while True:
            answer = json.loads(self._socket.recv(MAX_MESSAGE))
            if answer.get("id") != 1:
                continue  # an event
            if "error" in answer:
                raise NodeError(f"the launcher could not look: {answer['error']['reason']}")
            return answer["result"]


def _routes(layout: Layout) -> set[str]:
    rows = _haproxy(layout, f"show map {_map(layout)}").splitlines()
    return {row.split()[1] for row in rows if len(row.split()) >= 2}


def _map(layout: Layout) -> str:
    for line in _haproxy(layout, "show map").splitlines():
        if f"/{ROUTES_MAP})" in line:
            return f"#{line.split()[0]}"
    raise NodeError("HAProxy does not tell of its routes; try again when the node is ready")


def _haproxy(layout: Layout, command: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(_PATIENCE_SECONDS)
        sock.connect(str(layout.socket("haproxy")))
        sock.sendall(f"{command}\n".encode())
        answer = bytearray()
        while part := sock.recv(65_536):
            answer += part
        return answer.decode("ascii", "replace")


def _of_stopped(
    settings: Settings, *, fix: bool
) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Without a launcher: sandboxes that still run are those of the records, for the next start."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    network: HostNetwork | None = HostNetwork(network_config(settings))
    try:
        require_unclaimed()
    except NamespaceInUseError:
        network = None  # another node's
    try:
        cgroups = find_cgroups(settings.node_id, settings.data_dir / "cgroup")
    except CgroupError as error:
        raise NodeError(str(error)) from error
    images = Images(settings.data_dir)
    leaks = Leaks(data_dir=settings.data_dir, cgroups=cgroups, images=images, network=network)
    live = leaks.live_slots()
    first = set(leaks.find(live))
    if first:
        time.sleep(_APART_SECONDS)
    found = [leak for leak in leaks.find(live) if leak in first]
    removed = leaks.remove(found, live) if fix else []
    left_table = network is not None and not live and network.has_table()
    names = {(str(leak.kind), leak.name) for leak in found}
    gone = {(str(leak.kind), leak.name) for leak in removed}
    if left_table and network is not None:
        names.add(("kernel rules", "table and addresses of the node"))
        if fix:
            network.teardown()
            gone.add(("kernel rules", "table and addresses of the node"))
    if not live and cgroups.stands():
        names.add(("control group", "of the node"))
        if fix:
            cgroups.teardown()
            if not cgroups.stands():
                gone.add(("control group", "of the node"))
    return names, gone
