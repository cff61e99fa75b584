"""The ways into sandboxes: straight, or by a connector (see `proxies`). Pure: no I/O."""

from __future__ import annotations

from sandgate.ingress.layout import IngressConfig
from sandgate.ingress.pages import JSON_TYPE, NO_ANSWER, NOT_FOUND, PORT_CLOSED, SLOW
from sandgate.ingress.routes import ASLEEP, ENVD_PORT, JUPYTER_PORT
from sandgate.ingress.rules import DIRECT, HAS_BODY, VIA_CONNECTOR, answer_with

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


def section(head: str, lines: list[str]) -> str:
    """A section of the configuration."""
    return "\n".join([head, *(f"    {line}" for line in lines), ""])


def bind(config: IngressConfig, proxy: str, options: str = "") -> str:
    """A socket for connections within HAProxy: who could use it could reach any sandbox."""
    owner = f" user {config.user}" if config.user is not None else ""
    return f"bind unix@{config.socket(proxy)} mode 600{owner} accept-proxy{options}"


def ways(config: IngressConfig) -> list[str]:
    """The backends that :func:`choose` chooses between, and what is behind them."""
    rendered = [_direct()]
    rendered += [_sandboxes(config, way) for way in VIA_CONNECTOR]
    rendered += [_connector(config, way) for way in VIA_CONNECTOR]
    return rendered


def choose() -> list[str]:
    """The entry's rules that send a request on its way.

    Straight go those whose port has answered before, as the daemon's has before anyone can know of
    the sandbox, and whose client is no person, who would see a page. HAProxy answers for a server
    that drops the first request of an HTTP/1 connection. Where one drops a later request, HAProxy
    closes the client's connection, as if the client had been connected to the server itself: that
    says that the request may be sent again, which is right for GET and HEAD (RFC 9110, 9.2.2). The
    SDKs are always told what happened.
    """
    plain = "http1 answered !tls !{ var(txn.page) -m found }"
    straight = f"use_backend sandbox_{DIRECT} if"
    return [
        "acl answered var(txn.key),in_table(answered)",
        f"acl answered var(txn.port) -m int {ENVD_PORT}",
        "acl tls var(txn.tls) -m found",
        "acl http1 fc_http_major 1",
        *HAS_BODY,
        f"{straight} {{ http_first_req }} {plain}",
        f"{straight} {{ method GET HEAD }} !has_body "
        f"!{{ var(txn.port) -m int {ENVD_PORT} {JUPYTER_PORT} }} {plain}",
        "use_backend sandbox_known_tls if tls answered",
        "use_backend sandbox_new_tls if tls",
        "use_backend sandbox_known if answered",
        "default_backend sandbox_new",
    ]


def _direct() -> str:
    """The way from an entry into a sandbox."""
    marked = f"{{ res.hdr({_FAILURE_HEADER}) -m found }}"
    return section(
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
        lines += answer_with(NOT_FOUND, "http-response", config.directory, f"{failed} {condition}")
    for answer in _FAILURES.values():
        condition = f"{{ res.hdr({_FAILURE_HEADER}) {answer.name} }}"
        lines += answer_with(answer, "http-response", config.directory, condition)
    # A connector that gives up in the middle of a request's body is not heard out.
    known = f"var(txn.id),map_str({config.routes_map},-),length,sub(1),bool"
    message = f"%[{known},iif({NO_ANSWER.message},{NOT_FOUND.message})]"
    lines.append(
        f"http-error status 502 content-type '{JSON_TYPE}' lf-string "
        f'\'{{"sandboxId":"%[var(txn.id)]","message":"{message}","code":502}}\''
    )
    socket = config.inside_chroot(config.socket(f"connector-{way}"))
    return section(
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
    return section(
        f"listen connector_{way}",
        [
            bind(config, f"connector-{way}"),
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
