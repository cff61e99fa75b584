"""What HAProxy's configuration depends on, and where its files and sockets are. Pure: no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

ROUTES_MAP = "routes.map"
"""File name of the route map; the map is found by it over the Runtime API."""

BUFFER = 32_768
"""Bytes that the head of a request or of an answer may have, with 2 KB of HAProxy's own.

A stalled transfer holds about six of them (3 GB for all of 15,000; an idle connection none).
"""
MAX_HEADERS = 512
"""Headers that a request or an answer may have."""

_SAFE_PATH = re.compile(r"/[A-Za-z0-9/._@+-]*")
_SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """Everything the configuration depends on. Paths are absolute and without spaces or quotes.

    Raises ValueError naming the field that cannot be written into a configuration.
    """

    directory: Path
    """Where the generated files live; :func:`sandgate.ingress.config.write_files` fills it."""
    domain: str
    """Without a port."""
    listen: IPv4Address
    https_port: int
    certificate: Path
    """PEM with chain and key."""
    control_socket: Path
    """Unix socket of the API."""
    admin_socket: Path
    """Unix socket HAProxy creates for its Runtime API."""
    wake_socket: Path | None = None
    """Unix socket on which paused sandboxes are asked for (`sandgate.node.doorbell`)."""
    ingress_address: IPv4Address | None = None
    """Address at which sandboxes reach sandbox URLs, and nothing else. None for no such entry."""
    maxconn: int = 4000
    """Client connections, and requests into sandboxes, at once; see `maxconn_for`."""
    threads: int = 1
    user: str | None = None
    """User and group HAProxy becomes once it has opened its sockets. None to stay as it is."""
    group: str | None = None
    admin_user: str | None = None
    """Owner of the admin socket (mode 0600). None for whoever starts HAProxy."""
    public_listener: int | None = None
    """Descriptor of a socket at `listen` that HAProxy inherits. None: it opens one."""
    inner_listener: int | None = None
    """The same at `ingress_address`."""
    chroot: Path | None = None
    """Directory HAProxy locks itself into (needs root); holds `control_socket` and `directory`."""
    log: Path | None = None
    """Unix datagram socket for one JSON line a request. None for the standard output."""

    def __post_init__(self) -> None:
        paths = {
            "directory": self.directory,
            "certificate": self.certificate,
            "control_socket": self.control_socket,
            "admin_socket": self.admin_socket,
            "wake_socket": self.wake_socket,
            "chroot": self.chroot,
            "log": self.log,
        }
        for field, path in paths.items():
            if path is not None and not _SAFE_PATH.fullmatch(str(path)):
                raise ValueError(
                    f"{field} {str(path)!r} cannot be used by HAProxy: choose an absolute path of "
                    "letters, digits and ._@+-"
                )
        for field, name in (
            ("domain", self.domain),
            ("user", self.user),
            ("group", self.group),
            ("admin_user", self.admin_user),
        ):
            if name is not None and not _SAFE_NAME.fullmatch(name):
                raise ValueError(f"{field} {name!r} has characters that HAProxy cannot take")
        for field, inner in (
            ("control_socket", self.control_socket),
            ("directory", self.directory),
            ("wake_socket", self.wake_socket),
        ):
            if inner is None:
                continue
            if self.chroot is not None and not inner.is_relative_to(self.chroot):
                raise ValueError(
                    f"chroot {str(self.chroot)!r} must be a parent of {field} {str(inner)!r}, or "
                    "HAProxy could not reach the sockets in it"
                )
        if self.maxconn < 16:
            raise ValueError(f"maxconn {self.maxconn} is too small: at least 16 are needed")

    @property
    def config_file(self) -> Path:
        """The file HAProxy is started with."""
        return self.directory / "haproxy.cfg"

    @property
    def routes_map(self) -> Path:
        """The (always empty) file that gives the route map its name."""
        return self.directory / ROUTES_MAP

    def socket(self, proxy: str) -> Path:
        """Unix socket that one of HAProxy's proxies takes connections of another on."""
        return self.directory / f"{proxy}.sock"

    def inside_chroot(self, path: Path) -> Path:
        """`path` as HAProxy sees it once it runs."""
        return path if self.chroot is None else Path("/") / path.relative_to(self.chroot)

    @property
    def script(self) -> Path:
        """The Lua file."""
        return self.directory / "gate.lua"
