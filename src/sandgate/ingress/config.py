"""HAProxy's configuration for a node: rendered from a value, written before each start.

Written for HAProxy 2.4 (Ubuntu 22.04) and later. It runs in the foreground, without a master
(:func:`command`), and keeps no state: its route map starts empty, so that a restarted HAProxy
answers "not found" until :class:`sandgate.ingress.client.IngressClient` has filled it again.

A request for a sandbox passes two proxies of the one process. The entry (`public`, `inside`)
finds the route and decides; the connector makes the connection. They are apart because HAProxy
(up to 3.0) takes a server that closes without an answer for a race on a kept connection whenever
the client's own connection carried a request before, and always on HTTP/2: instead of a 502 the
client is told that its request was not processed and may be sent again, POSTs included. Between
the two each connection carries one request, so that the connector always answers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from ipaddress import IPv4Address
from pathlib import Path

from sandgate.ingress.pages import (
    ANSWERS,
    JSON_TYPE,
    NO_ANSWER,
    PORT_CLOSED,
    SLOW,
    TOKEN_HEADER,
)
from sandgate.ingress.rules import PORTS, admit, classify, refuse

ROUTES_MAP = "routes.map"
"""File name of the route map; the map is found by it over the Runtime API."""

_SAFE_PATH = re.compile(r"/[A-Za-z0-9/._@+-]*")
_SAFE_NAME = re.compile(r"[A-Za-z0-9._-]+")
_RESERVED_FDS = 200
_FDS_PER_CLIENT = 4


@dataclass(frozen=True, slots=True)
class IngressConfig:
    """Everything the configuration depends on. Paths are absolute and without spaces or quotes.

    Raises ValueError naming the field that cannot be written into a configuration.
    """

    directory: Path
    """Where the generated files live; :func:`write_files` fills it."""
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
    ingress_address: IPv4Address | None = None
    """Address at which sandboxes reach sandbox URLs, and nothing else. None for no such entry."""
    maxconn: int = 4000
    """Client connections, and requests into sandboxes, at once; see :func:`maxconn_for`."""
    threads: int = 2
    user: str | None = None
    """User and group HAProxy becomes once it has opened its sockets. None to stay as it is."""
    group: str | None = None
    admin_user: str | None = None
    """Owner of the admin socket (mode 0600). None for whoever starts HAProxy."""
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
        ):
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

    def connector_socket(self, port: str) -> Path:
        """Unix socket of the connector for `new` or `known` ports; HAProxy creates it."""
        return self.directory / f"connector-{port}.sock"

    def inside_chroot(self, path: Path) -> Path:
        """`path` as HAProxy sees it once it runs."""
        return path if self.chroot is None else Path("/") / path.relative_to(self.chroot)

    @property
    def script(self) -> Path:
        """The Lua file."""
        return self.directory / "gate.lua"


def maxconn_for(fd_limit: int) -> int:
    """Client connections, and as many requests into sandboxes, for a limit of `fd_limit` files.

    A client connection needs one file descriptor and a request three more; one HTTP/2 connection
    carries many requests.
    """
    return max(16, min((fd_limit - _RESERVED_FDS) // _FDS_PER_CLIENT, 20_000))


def command(config: IngressConfig, haproxy: str = "haproxy") -> list[str]:
    """The command that runs HAProxy in the foreground as one process."""
    return [haproxy, "-db", "-f", str(config.config_file)]


def write_files(config: IngressConfig) -> None:
    """Write all that HAProxy reads into `config.directory` (made if need be). None of it is secret.

    The directory may be passed through by everyone, since HAProxy's user connects to sockets in it.
    """
    config.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    config.routes_map.write_text("")
    config.script.write_text(
        resources.files("sandgate.ingress").joinpath("gate.lua").read_text(encoding="utf-8")
    )
    for answer in ANSWERS:
        answer.file(config.directory, html=False).write_text(answer.json())
        answer.file(config.directory, html=True).write_text(answer.html())
    config.config_file.write_text(render_config(config))


def render_config(config: IngressConfig) -> str:
    """The configuration file. Pure: the same value gives the same text."""
    sections = [_global(config), _DEFAULTS]
    sections.append(_frontend(config, "public", config.listen, api=True))
    if config.ingress_address is not None:
        sections.append(_frontend(config, "inside", config.ingress_address, api=False))
        sections.append(_PEERS_TABLE)
    sections.append(_control(config))
    sections.append(_ANSWERED_TABLE)
    sections.append(_REQUESTS_TABLE)
    sections += [_sandboxes(config, port) for port in PORTS]
    sections += [_connector(config, port) for port in PORTS]
    return "\n".join(sections)


def _global(config: IngressConfig) -> str:
    log = "stdout format raw" if config.log is None else f"{config.log} format rfc3164"
    owner = f" user {config.admin_user}" if config.admin_user is not None else ""
    lines = [
        f"log {log} local0",
        f"stats socket {config.admin_socket} mode 600 level admin{owner}",
        "stats timeout 1d",
        f"maxconn {config.maxconn * 2}",
        f"nbthread {config.threads}",
        f"lua-load-per-thread {config.script}",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        # An SDK keeps one request open per running command; at the default of 100 the next one
        # would wait on a client that opens just one connection.
        "tune.h2.max-concurrent-streams 250",
    ]
    if config.user is not None:
        lines.append(f"user {config.user}")
    if config.group is not None:
        lines.append(f"group {config.group}")
    if config.chroot is not None:
        lines.append(f"chroot {config.chroot}")
    return _section("global", lines)


_FAILURE_HEADER = "sandgate-failure"
_FAILURES = {502: NO_ANSWER, 503: PORT_CLOSED, 504: SLOW}
"""What the statuses mean that HAProxy itself answers with when a server fails it."""

_LOG_FORMAT = (
    '{"event":"ingress","client":"%ci","entry":"%f","method":"%HM",'
    '"host":"%[var(txn.host),json(utf8s)]","sandbox":"%[var(txn.id),json(utf8s)]",'
    '"port":"%[var(txn.port)]","status":%ST,"received":%U,"sent":%B,"ms":%Ta,"end":"%ts"}'
)


def _section(head: str, lines: list[str]) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines), ""])


_DEFAULTS = _section(
    "defaults",
    [
        "mode http",
        "log global",
        "option dontlognull",
        "option http-ignore-probes",
        # A connection to a sandbox carries one request. Its address passes to another sandbox
        # some day and servers inside restart all the time; a new connection costs some 40 us.
        "option http-server-close",
        "http-reuse never",
        # A client that goes away ends its request: long executions are interrupted that way.
        "option abortonclose",
        # With timeouts of hours, keepalive is what finds a peer that vanished.
        "option clitcpka",
        "clitcpka-idle 60s",
        "clitcpka-intvl 15s",
        "clitcpka-cnt 4",
        "option srvtcpka",
        "srvtcpka-idle 60s",
        "srvtcpka-intvl 15s",
        "srvtcpka-cnt 4",
        "timeout http-request 30s",
        "timeout http-keep-alive 650s",
        "timeout client 2h",
        "timeout server 2h",
        "timeout tunnel 24h",
        "timeout connect 5s",
    ],
)

_ANSWERED_TABLE = _section(
    "backend answered",
    [
        "# Ports that have answered, as `port-id`.",
        "stick-table type string len 72 size 64k expire 1h",
    ],
)
_REQUESTS_TABLE = _section(
    "backend requests",
    [
        "# Requests open at this moment, by sandbox.",
        "stick-table type string len 64 size 16k expire 1m store conn_cur",
    ],
)
_PEERS_TABLE = _section(
    "backend peers",
    [
        "# Connections open at this moment, by calling sandbox.",
        "stick-table type ip size 16k expire 1m store conn_cur",
    ],
)


def _frontend(config: IngressConfig, name: str, address: IPv4Address, *, api: bool) -> str:
    lines = [
        f"bind {address}:{config.https_port} ssl crt {config.certificate} alpn h2,http/1.1",
        # Neither path nor query nor any header: signed URLs and tokens are in there.
        f"log-format '{_LOG_FORMAT}'",
    ]
    if api:
        lines.append(f"maxconn {config.maxconn}")
    else:
        # Sandboxes together leave room for everyone else, and each for the others.
        lines += [
            f"maxconn {config.maxconn // 2}",
            "tcp-request connection track-sc0 src table peers",
            f"tcp-request connection reject if {{ sc_conn_cur(0) gt {config.maxconn // 8} }} "
            # The egress gateway, for sandboxes whose policy has names; it has limits of its own.
            f"!{{ src {address} }}",
        ]
    lines += classify(config.domain)
    if api:
        lines.append("http-request allow if { var(txn.api) -m found }")
    else:
        lines.append(
            f"http-request return status 404 content-type '{JSON_TYPE}' string "
            '\'{"code":404,"message":"Only sandbox URLs are served here"}\' '
            "if { var(txn.api) -m found }"
        )
    lines += admit(config.directory, config.routes_map, config.maxconn)
    if api:
        lines.append("use_backend control if { var(txn.api) -m found }")
    lines += [
        "use_backend sandbox_known if { var(txn.key),in_table(answered) }",
        "default_backend sandbox_new",
    ]
    return _section(f"frontend {name}", lines)


def _control(config: IngressConfig) -> str:
    def error(status: int, message: str, retry: str) -> str:
        # The SDK repeats 502, 503 and 504 unless told otherwise; a request that may have been
        # acted upon must not be repeated (e2b-wire-contract, 1.6).
        return (
            f"http-error status {status} content-type '{JSON_TYPE}' string "
            f'\'{{"code":{status},"message":"{message}"}}\' hdr Should-Retry {retry}'
        )

    return _section(
        "backend control",
        [
            f"http-request del-header {TOKEN_HEADER}",
            error(502, "The API ended while it handled the request", "false"),
            error(503, "The API is starting or down", "true"),
            error(504, "The API did not answer in time", "false"),
            f"server api unix@{config.inside_chroot(config.control_socket)}",
        ],
    )


def _sandboxes(config: IngressConfig, port: str) -> str:
    """The way from an entry to a connector, and the answers where that has failed."""
    lines = []
    if port == "new":
        lines.append(
            "http-response track-sc2 var(txn.key) table answered "
            f"if !{{ res.hdr({_FAILURE_HEADER}) -m found }}"
        )
    for answer in _FAILURES.values():
        lines += refuse(
            "http-response",
            answer,
            config.directory,
            f"{{ res.hdr({_FAILURE_HEADER}) {answer.name} }}",
        )
    socket = config.inside_chroot(config.connector_socket(port))
    return _section(
        f"backend sandbox_{port}", [*lines, f"server connector unix@{socket} send-proxy-v2"]
    )


def _connector(config: IngressConfig, port: str) -> str:
    """Makes the connection to the sandbox; its address comes in the PROXY header.

    HAProxy waits the connect timeout before it repeats a refused connection. A port that has
    never answered gets five quick attempts within a second, since its server may be starting. One
    that has answered gets patience, since a full accept queue (a busy server) shows as silence.
    """
    owner = f" user {config.user}" if config.user is not None else ""
    patience = {
        "new": ["timeout connect 250ms", "retries 4"],
        "known": ["timeout connect 15s", "retries 1"],
    }
    return _section(
        f"listen connector_{port}",
        [
            f"bind unix@{config.connector_socket(port)} mode 600{owner} accept-proxy",
            "no log",
            *patience[port],
            # Only failures made here carry the header.
            f"http-response del-header {_FAILURE_HEADER}",
            *(
                f"http-error status {status} content-type text/plain string failed "
                f"hdr {_FAILURE_HEADER} {answer.name}"
                for status, answer in _FAILURES.items()
            ),
            "server sandbox 0.0.0.0:0",
        ],
    )
