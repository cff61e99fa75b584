"""The sections of HAProxy's configuration. Pure: no I/O.

A request for a sandbox passes up to three proxies of the one process, each for a shortcoming of
HAProxy (seen with 2.6):

* the **door** looks at the SNI of a connection and offers HTTP/2 or not. HAProxy ends an HTTP/2
  stream cleanly even if the server broke off, so that a client takes a part for the whole. The
  SDK's streams must show the end of a sandbox; their hosts get HTTP/1.1, which does.
* the **entry** ends TLS, finds the route and decides.
* the **connector** makes the connection into the sandbox. HAProxy takes a server that closes
  without an answer for a race on a kept connection whenever the client's own connection carried
  a request before, and always on HTTP/2: instead of a 502 the client is told that its request was
  not processed and may be sent again, POSTs included. Between entry and connector each connection
  carries one request, so that the connector always answers. It costs as much as all the rest of a
  request, so those that need none go straight (`sandgate.ingress.ways`).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from sandgate.ingress import handshakes
from sandgate.ingress.headers import USUAL_NAMES
from sandgate.ingress.layout import BUFFER, MAX_HEADERS, IngressConfig
from sandgate.ingress.pages import ERRORS, JSON_TYPE, TOKEN_HEADER
from sandgate.ingress.routes import ENVD_PORT, JUPYTER_PORT
from sandgate.ingress.rules import (
    REFUSED,
    admit,
    as_shown,
    classify,
    refusals,
    refuse_unknown_methods,
)
from sandgate.ingress.ways import bind, choose, section, ways


def sections(config: IngressConfig) -> list[str]:
    """All sections, in order."""
    rendered = [_global(config), _defaults(config)]
    rendered.append(_door(config, "public", config.listen))
    rendered.append(_entry(config, "public", api=True))
    if config.ingress_address is not None:
        rendered.append(_door(config, "inside", config.ingress_address))
        rendered.append(_entry(config, "inside", api=False))
        rendered.append(_PEERS_TABLE)
    rendered.append(_control(config))
    rendered.append(section("backend refusals", refusals(config.directory)))
    rendered.append(_ANSWERED_TABLE)
    rendered += [
        _REQUESTS_TABLE,
        _VISITORS_TABLE,
        section("backend handshakes", list(handshakes.TABLE)),
    ]
    rendered += ways(config)
    return rendered


def _global(config: IngressConfig) -> str:
    log = "stdout format raw" if config.log is None else f"{config.log} format rfc3164"
    owner = f" user {config.admin_user}" if config.admin_user is not None else ""
    lines = [
        f"log {log} local0",
        f"stats socket {config.admin_socket} mode 600 level admin{owner}",
        "stats timeout 1d",
        # Asked to end softly, for an upgrade, it serves the connections it has for so long.
        "hard-stop-after 1h",
        f"maxconn {config.maxconn * 3}",
        f"nbthread {config.threads}",
        f"lua-load-per-thread {config.script}",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        # An SDK keeps one request open per running command; at the default of 100 the next one
        # would wait on a client that opens just one connection.
        "tune.h2.max-concurrent-streams 250",
        # The whole head of a request or an answer has to fit into one buffer, less what may be
        # added to it. An idle connection has no buffer.
        f"tune.bufsize {BUFFER}",
        "tune.maxrewrite 1024",
        # It remembers for so many names and expressions whether they match; the default, 10,000, is
        # a MB, which it fills up with names of sandboxes that are gone.
        "tune.pattern.cache-size 1000",
        f"tune.http.maxhdr {MAX_HEADERS}",
        *(f"h1-case-adjust {name.lower()} {name}" for name in USUAL_NAMES),
    ]
    if config.user is not None:
        lines.append(f"user {config.user}")
    if config.group is not None:
        lines.append(f"group {config.group}")
    if config.chroot is not None:
        lines.append(f"chroot {config.chroot}")
    return section("global", lines)


_NO_HTTP2 = rf"^({ENVD_PORT}-|{JUPYTER_PORT}-|sandbox[.]|localhost$)"
"""SNI of the hosts on which the SDKs stream."""

_LOG_FORMAT = (
    '{"event":"ingress","client":"%ci","entry":"%f","method":"%HM",'
    '"host":"%[var(txn.host),json(utf8s)]","sandbox":"%[var(txn.id),json(utf8s)]",'
    '"port":"%[var(txn.port)]","status":%ST,"received":%U,"sent":%B,"ms":%Ta,"end":"%ts"}'
)


_DEFAULTS = [
    "mode http",
    "log global",
    "option dontlognull",
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
]


def _defaults(config: IngressConfig) -> str:
    # HAProxy before 3.3 uses the files only once it could read the head of a request.
    files = [f"errorfile {error.status} {error.file(config.directory)}" for error in ERRORS]
    return section("defaults", [*_DEFAULTS, *files])


_ANSWERED_TABLE = section(
    "backend answered",
    [
        "# Ports that have answered, as `port-id`.",
        "stick-table type string len 72 size 64k expire 1h",
    ],
)
_REQUESTS_TABLE = section(
    "backend requests",
    [
        "# Requests open at this moment, by sandbox.",
        "stick-table type string len 64 size 16k expire 1m store conn_cur",
    ],
)
_VISITORS_TABLE = section(
    "backend visitors",
    [
        "# Client connections open at this moment, by sandbox (as the name they asked for has it).",
        "stick-table type string len 64 size 16k expire 1m store conn_cur",
    ],
)
_PEERS_TABLE = section(
    "backend peers",
    [
        "# Connections open at this moment, by calling sandbox.",
        "stick-table type ip size 16k expire 1m store conn_cur",
    ],
)


def _door(config: IngressConfig, name: str, address: IPv4Address) -> str:
    """Takes connections and passes them to one of the entry's two sockets, by SNI."""
    inherited = config.public_listener if name == "public" else config.inner_listener
    place = f"{address}:{config.https_port}" if inherited is None else f"fd@{inherited}"
    lines = ["mode tcp", "no log", f"bind {place}"]
    if name == "public":
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
    lines += [
        "tcp-request inspect-delay 10s",
        "tcp-request content reject if !{ req.ssl_hello_type 1 }",
        *handshakes.begun(),
        # Visitors of one sandbox leave room for those of the others, also while they ask nothing.
        "acl of_sandbox req.ssl_sni,field(1,.) -m sub -- -",
        "tcp-request content track-sc1 req.ssl_sni,lower,field(1,.),field(2,-) table visitors "
        "if of_sandbox",
        f"tcp-request content reject if of_sandbox {{ sc_conn_cur(1) gt {config.maxconn // 2} }}",
        f"use_backend {name}_h1 if {{ req.ssl_sni -m reg -i {_NO_HTTP2} }}",
        f"use_backend {name}_h1 if !{{ req.ssl_sni -m found }}",
        f"default_backend {name}_h2",
    ]
    sections = [section(f"frontend {name}_door", lines)]
    for version in ("h1", "h2"):
        socket = config.inside_chroot(config.socket(f"{name}-{version}"))
        sections.append(
            section(
                f"backend {name}_{version}",
                ["mode tcp", f"server entry unix@{socket} send-proxy-v2"],
            )
        )
    return "\n".join(sections)


def _entry(config: IngressConfig, name: str, *, api: bool) -> str:
    tls = f" ssl crt {config.certificate} alpn "
    lines = [
        bind(config, f"{name}-h1", f"{tls}http/1.1"),
        bind(config, f"{name}-h2", f"{tls}h2,http/1.1"),
        *handshakes.finished(),
        "option http-ignore-probes",
        # Neither path nor query nor any header: signed URLs and tokens are in there.
        f"log-format '{_LOG_FORMAT}'",
    ]
    lines += classify(config.domain)
    if api:
        lines += [*refuse_unknown_methods(), "http-request allow if { var(txn.api) -m found }"]
    else:
        lines.append(
            f"http-request return status 404 content-type '{JSON_TYPE}' string "
            '\'{"code":404,"message":"Only sandbox URLs are served here"}\' '
            "if { var(txn.api) -m found }"
        )
        lines += as_shown()
    wake = None if config.wake_socket is None else config.inside_chroot(config.wake_socket)
    lines += admit(config.routes_map, config.maxconn, wake)
    lines.append(f"use_backend refusals if {REFUSED}")
    if api:
        lines.append("use_backend control if { var(txn.api) -m found }")
    return section(f"frontend {name}", [*lines, *choose()])


def _control(config: IngressConfig) -> str:
    def error(status: int, message: str, retry: str) -> str:
        # The SDK repeats 502, 503 and 504 unless told otherwise; a request that may have been
        # acted upon must not be repeated (e2b-wire-contract, 1.6).
        return (
            f"http-error status {status} content-type '{JSON_TYPE}' string "
            f'\'{{"code":{status},"message":"{message}"}}\' hdr Should-Retry {retry}'
        )

    return section(
        "backend control",
        [
            f"http-request del-header {TOKEN_HEADER}",
            error(502, "The API ended while it handled the request", "false"),
            error(503, "The API is starting or down", "true"),
            error(504, "The API did not answer in time", "false"),
            f"server api unix@{config.inside_chroot(config.control_socket)}",
        ],
    )
