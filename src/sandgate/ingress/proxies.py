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
  request, so :func:`_direct` is the way of those that need none.
"""

from __future__ import annotations

from ipaddress import IPv4Address

from sandgate.ingress.headers import USUAL_NAMES
from sandgate.ingress.layout import BUFFER, MAX_HEADERS, IngressConfig
from sandgate.ingress.pages import (
    ERRORS,
    JSON_TYPE,
    NO_ANSWER,
    NOT_FOUND,
    PORT_CLOSED,
    SLOW,
    TOKEN_HEADER,
)
from sandgate.ingress.routes import ASLEEP, ENVD_PORT, JUPYTER_PORT
from sandgate.ingress.rules import (
    DIRECT,
    VIA_CONNECTOR,
    admit,
    as_shown,
    classify,
    refuse,
    refuse_unknown_methods,
)


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
    rendered.append(_ANSWERED_TABLE)
    rendered += [_REQUESTS_TABLE, _VISITORS_TABLE]
    rendered.append(_direct())
    rendered += [_sandboxes(config, way) for way in VIA_CONNECTOR]
    rendered += [_connector(config, way) for way in VIA_CONNECTOR]
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
        f"tune.http.maxhdr {MAX_HEADERS}",
        *(f"h1-case-adjust {name.lower()} {name}" for name in USUAL_NAMES),
    ]
    if config.user is not None:
        lines.append(f"user {config.user}")
    if config.group is not None:
        lines.append(f"group {config.group}")
    if config.chroot is not None:
        lines.append(f"chroot {config.chroot}")
    return _section("global", lines)


_NO_HTTP2 = rf"^({ENVD_PORT}-|{JUPYTER_PORT}-|sandbox[.]|localhost$)"
"""SNI of the hosts on which the SDKs stream."""

_INNER_ALPN = "h2,http/1.1"
"""What servers in sandboxes are offered where they speak HTTPS themselves."""

_FAILURE_HEADER = "sandgate-failure"
_FAILURES = {502: NO_ANSWER, 503: PORT_CLOSED, 504: SLOW}
"""What the statuses mean that HAProxy itself answers with when a server fails it."""

_CASES = "option h1-case-adjust-bogus-server"
"""Header names reach a sandbox's server as its author wrote them in the code."""

_PATIENCE = {
    "new": ["timeout connect 250ms", "retries 4"],
    "new_tls": ["timeout connect 5s", "retries 1"],
    "known": ["timeout connect 15s", "retries 1"],
    "known_tls": ["timeout connect 15s", "retries 1"],
}
"""How a connection into a sandbox is tried.

HAProxy waits the connect timeout before it repeats a refused connection. A port that has never
answered gets five quick attempts within a second, since its server may be starting. One that has
answered gets patience, since a full accept queue (a busy server) shows as silence. A TLS handshake
is part of the connect, and may take a loaded server longer than 250 ms.
"""

_LOG_FORMAT = (
    '{"event":"ingress","client":"%ci","entry":"%f","method":"%HM",'
    '"host":"%[var(txn.host),json(utf8s)]","sandbox":"%[var(txn.id),json(utf8s)]",'
    '"port":"%[var(txn.port)]","status":%ST,"received":%U,"sent":%B,"ms":%Ta,"end":"%ts"}'
)


def _section(head: str, lines: list[str]) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines), ""])


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
    return _section("defaults", [*_DEFAULTS, *files])


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
_VISITORS_TABLE = _section(
    "backend visitors",
    [
        "# Client connections open at this moment, by sandbox (as the name they asked for has it).",
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


def _bind(config: IngressConfig, proxy: str, options: str = "") -> str:
    """A socket for connections within HAProxy: who could use it could reach any sandbox."""
    owner = f" user {config.user}" if config.user is not None else ""
    return f"bind unix@{config.socket(proxy)} mode 600{owner} accept-proxy{options}"


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
        # Visitors of one sandbox leave room for those of the others, also while they ask nothing.
        "acl of_sandbox req.ssl_sni,field(1,.) -m sub -- -",
        "tcp-request content track-sc1 req.ssl_sni,lower,field(1,.),field(2,-) table visitors "
        "if of_sandbox",
        f"tcp-request content reject if of_sandbox {{ sc_conn_cur(1) gt {config.maxconn // 2} }}",
        f"use_backend {name}_h1 if {{ req.ssl_sni -m reg -i {_NO_HTTP2} }}",
        f"use_backend {name}_h1 if !{{ req.ssl_sni -m found }}",
        f"default_backend {name}_h2",
    ]
    sections = [_section(f"frontend {name}_door", lines)]
    for version in ("h1", "h2"):
        socket = config.inside_chroot(config.socket(f"{name}-{version}"))
        sections.append(
            _section(
                f"backend {name}_{version}",
                ["mode tcp", f"server entry unix@{socket} send-proxy-v2"],
            )
        )
    return "\n".join(sections)


def _entry(config: IngressConfig, name: str, *, api: bool) -> str:
    tls = f" ssl crt {config.certificate} alpn "
    lines = [
        _bind(config, f"{name}-h1", f"{tls}http/1.1"),
        _bind(config, f"{name}-h2", f"{tls}h2,http/1.1"),
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
    lines += admit(config.directory, config.routes_map, config.maxconn, wake)
    if api:
        lines.append("use_backend control if { var(txn.api) -m found }")
    lines += [
        "acl answered var(txn.key),in_table(answered)",
        "acl tls var(txn.tls) -m found",
        *_directly(),
        "use_backend sandbox_known_tls if tls answered",
        "use_backend sandbox_new_tls if tls",
        "use_backend sandbox_known if answered",
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


def _directly() -> list[str]:
    """The entry's rules for requests that need no connector.

    Their ports have answered before, so that a refused connection may wait (see `_connector`), and
    no person waits for them. HAProxy answers for a server that drops the first request of an
    HTTP/1 connection. Where it drops a later one, HAProxy closes the client's connection, which
    says that the request may be sent again: right for GET and HEAD (RFC 9110, 9.2.2), as if the
    client had been connected to the server itself. The SDKs are always told what happened.
    """
    plain = f"use_backend sandbox_{DIRECT} if answered !tls http1 !{{ var(txn.page) -m found }}"
    return [
        "acl http1 fc_http_major 1",
        f"{plain} {{ http_first_req }}",
        f"{plain} {{ method GET HEAD }} !has_body !{{ var(txn.port) -m int {ENVD_PORT} }}",
    ]


def _direct() -> str:
    """The way from an entry into a sandbox."""
    marked = f"{{ res.hdr({_FAILURE_HEADER}) -m found }}"
    return _section(
        f"backend sandbox_{DIRECT}",
        [
            _CASES,
            *_PATIENCE["known"],
            f"http-response del-header {_FAILURE_HEADER}",
            *(
                f"http-error status {status} content-type '{JSON_TYPE}' "
                f"lf-string '%[lua.failure({answer.name})]' hdr Cache-Control no-store "
                f"hdr {_FAILURE_HEADER} {answer.name}"
                for status, answer in _FAILURES.items()
            ),
            f"http-after-response set-status {PORT_CLOSED.status} "
            f"if {{ res.hdr({_FAILURE_HEADER}) {PORT_CLOSED.name} }}",
            f"http-after-response del-header {_FAILURE_HEADER} if {marked}",
            "server sandbox 0.0.0.0:0",
        ],
    )


def _sandboxes(config: IngressConfig, way: str) -> str:
    """The way from an entry to a connector, and the answers where that has failed."""
    lines = []
    if way.startswith("new"):
        lines.append(
            "http-response track-sc2 var(txn.key) table answered "
            f"if !{{ res.hdr({_FAILURE_HEADER}) -m found }}"
        )
    # Whoever was cut off by the end or the pause of the sandbox is told so.
    failed = f"{{ res.hdr({_FAILURE_HEADER}) -m found }}"
    route = f"var(txn.id),map_str({config.routes_map})"
    for condition in (f"!{{ {route} -m found }}", f"{{ {route},field(1,|) -m str {ASLEEP} }}"):
        lines += refuse("http-response", NOT_FOUND, config.directory, f"{failed} {condition}")
    for answer in _FAILURES.values():
        lines += refuse(
            "http-response",
            answer,
            config.directory,
            f"{{ res.hdr({_FAILURE_HEADER}) {answer.name} }}",
        )
    # A connector that gives up in the middle of a request's body is not heard out.
    known = f"var(txn.id),map_str({config.routes_map},-),length,sub(1),bool"
    message = f"%[{known},iif({NO_ANSWER.message},{NOT_FOUND.message})]"
    lines.append(
        f"http-error status 502 content-type '{JSON_TYPE}' lf-string "
        f'\'{{"sandboxId":"%[var(txn.id)]","message":"{message}","code":502}}\''
    )
    socket = config.inside_chroot(config.socket(f"connector-{way}"))
    return _section(
        f"backend sandbox_{way}", [*lines, f"server connector unix@{socket} send-proxy-v2"]
    )


def _connector(config: IngressConfig, way: str) -> str:
    """Makes the connection to the sandbox; its address comes in the PROXY header."""
    server, name = "server sandbox 0.0.0.0:0", []
    if way.endswith("tls"):
        # A certificate would prove nothing: who is at the address, the kernel's routes decide.
        # The server is shown the request's host as its name, unless that is an address.
        server += f" ssl verify none alpn {_INNER_ALPN} sni var(txn.sni)"
        host = "req.hdr(host),lower,regsub(:[0-9]*$,)"
        address = r"'^([0-9]{1,3}[.]){3}[0-9]{1,3}$' '^\['"
        name = [f"http-request set-var(txn.sni) {host} if !{{ {host} -m reg {address} }}"]
    return _section(
        f"listen connector_{way}",
        [
            _bind(config, f"connector-{way}"),
            "no log",
            _CASES,
            *_PATIENCE[way],
            *name,
            # Only failures made here carry the header.
            f"http-response del-header {_FAILURE_HEADER}",
            *(
                f"http-error status {status} content-type text/plain string failed "
                f"hdr {_FAILURE_HEADER} {answer.name}"
                for status, answer in _FAILURES.items()
            ),
            server,
        ],
    )
