"""The rules that find a request's sandbox and decide whether it may pass. Pure: no I/O.

Each function returns lines of a HAProxy frontend. What they share is kept in variables:
`txn.host` (lower case, no port), `txn.api` (set for the API), `txn.id`, `txn.port`, `txn.page`
(set when a person should get a page), `txn.address`, `txn.tls` (set where the port speaks HTTPS),
`txn.key` (for the table of ports that have answered), `txn.refusal` (why it may not pass). Clients
decide none of `txn.address`, `txn.tls` and `txn.key` but by the choice of sandbox and port.
"""

from __future__ import annotations

from pathlib import Path

from sandgate.ingress.pages import (
    ANSWERS,
    BUSY,
    HTML_TYPE,
    JSON_TYPE,
    NOT_FOUND,
    NOT_RESUMED,
    STARTING,
    TEXT_TYPE,
    TOKEN_HEADER,
    TOKEN_MISSING,
    TOKEN_WRONG,
    UNAUTHORIZED,
    Answer,
)
from sandgate.ingress.routes import ASLEEP, ENVD_PORT, FILLED

VIA_CONNECTOR = ("new", "known", "new_tls", "known_tls")
"""Ways into sandboxes: for ports that have never answered, and for those that have."""
DIRECT = "direct"
"""The way into sandboxes of requests that need no connector."""

HAS_BODY = (
    "acl has_body req.fhdr(content-length) -m found",
    "acl has_body req.fhdr(transfer-encoding) -m found",
)

_LONGEST_HOST = 300
"""Characters: the longest name, a port, and brackets or zeros to spare."""

_BROWSERS = "mozilla chrome safari firefox edge opera msie"


def classify(domain: str) -> list[str]:
    """Rules that set txn.api, or txn.id and txn.port, or refuse (e2b-network-semantics, 2.2)."""

    def invalid(text: str, condition: str) -> str:
        return (
            f"http-request return status 400 content-type '{TEXT_TYPE}' string '{text}' {condition}"
        )

    shared, api = "{ var(txn.shared) -m found }", "{ var(txn.api) -m found }"
    with_id = "{ req.fhdr(E2b-Sandbox-Id) -m found }"
    with_port = "{ req.fhdr(E2b-Sandbox-Port) -m found }"
    return [
        # Hosts are written into other headers and into the log.
        invalid("Invalid host", f"if {{ req.fhdr(host),length gt {_LONGEST_HOST} }}"),
        "http-request set-var(txn.host) req.fhdr(host),lower,regsub(:[0-9]*$,),regsub([.]$,)",
        f"http-request set-var(txn.api) bool(true) if {{ var(txn.host) -m str {domain} "
        f"api.{domain} }}",
        # Hosts that name no sandbox; only there do the routing headers count. Elsewhere the host
        # decides, or a page of one sandbox could talk to another under its own name.
        f"http-request set-var(txn.shared) bool(true) if {{ var(txn.host) -m str localhost "
        f"sandbox.{domain} }}",
        r"http-request set-var(txn.shared) bool(true) if "
        r"{ var(txn.host) -m reg '^([0-9]{1,3}[.]){3}[0-9]{1,3}$' '^\[[0-9a-f:.]+\]$' }",
        invalid("missing header E2b-Sandbox-Port", f"if {shared} {with_id} !{with_port}"),
        invalid("missing header E2b-Sandbox-Id", f"if {shared} !{with_id} {with_port}"),
        f"http-request set-var(txn.api) bool(true) if {shared} !{with_id} "
        f"!{{ var(txn.host) -m str sandbox.{domain} }}",
        f"http-request set-var(txn.id) req.fhdr(E2b-Sandbox-Id),lower if {shared}",
        f"http-request set-var(txn.digits) req.fhdr(E2b-Sandbox-Port) if {shared}",
        f"http-request set-var(txn.label) var(txn.host),field(1,.) if !{shared} !{api}",
        invalid(
            "Invalid host",
            f"if !{api} !{{ var(txn.id) -m found }} !{{ var(txn.label) -m sub -- - }}",
        ),
        invalid("Invalid host", f"if !{api} !{shared} !{{ var(txn.host) -m sub . }}"),
        f"http-request set-var(txn.digits) var(txn.label),field(1,-) if !{shared} !{api}",
        f"http-request set-var(txn.id) var(txn.label),field(2,-) if !{shared} !{api}",
        invalid(
            "Invalid sandbox port",
            f"if !{api} !{{ var(txn.digits) -m reg ^0*[0-9]{{1,5}}$ }}",
        ),
        f"http-request set-var(txn.port) var(txn.digits),add(0) if !{api}",
        invalid("Invalid sandbox port", f"if !{api} !{{ var(txn.port) -m int 1:65535 }}"),
        invalid("Invalid sandbox ID", f"if !{api} !{{ var(txn.id) -m reg ^[a-z0-9]{{1,63}}$ }}"),
    ]


def as_shown() -> list[str]:
    """Rules that refuse another host than the server name that the connection was judged by.

    Of a sandbox whose policy has names, the egress gateway has seen no more than the TLS server
    name: without this, one allowed sandbox URL would open those of all sandboxes.
    """
    shown = "{ ssl_fc_has_sni }"
    return [
        "http-request set-var(txn.shown) ssl_fc_sni,lower,regsub([.]$,)",
        f"http-request return status 421 content-type '{TEXT_TYPE}' string "
        f"'The host is not the one of the TLS connection' "
        f"if {shown} !{{ var(txn.host),strcmp(txn.shown) eq 0 }}",
    ]


def refuse_unknown_methods() -> list[str]:
    """Rules that keep from the API what its HTTP parser may not know: that would be no JSON."""
    allowed = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    return [
        f"http-request return status 405 content-type '{JSON_TYPE}' string "
        '\'{"code":405,"message":"This method is not possible here"}\' '
        f"hdr Allow '{allowed}' hdr Cache-Control no-store "
        f"if {{ var(txn.api) -m found }} !{{ method {allowed.replace(',', '')} }}",
    ]


def admit(routes_map: Path, max_requests: int, wake_socket: Path | None) -> list[str]:
    """Rules for a request with well-formed txn.id and txn.port: the route, the token, the mask.

    Who may not pass is left with txn.refusal (see :func:`refusals`). At most `max_requests`
    requests are open at once, a quarter of them to any one sandbox. `wake_socket` is where paused
    sandboxes are asked for.
    """
    route = f"var(txn.id),map_str({routes_map})"
    unknown = "!{ var(txn.route) -m found }"
    unfilled = f"!{{ str({FILLED}),map_str({routes_map}) -m found }}"
    envd = f"{{ var(txn.port) -m int {ENVD_PORT} }}"
    # Should the row lack a token field for any reason, the sandbox counts as private.
    private = f"!{envd} !{{ var(txn.token) -m str -- - }}"
    masked = "{ var(txn.mask) -m found } !{ var(txn.mask) -m str -- - }"
    some_https = "{ var(txn.https) -m found } !{ var(txn.https) -m str -- - }"
    token = f"req.fhdr({TOKEN_HEADER})"
    # HAProxy and others differ in which of several they mean; nobody has reason to send them.
    several = f"{{ req.fhdr_cnt({TOKEN_HEADER}) gt 1 }}"
    return [
        # A page for a person, JSON for a program (e2b-network-semantics, 2.3).
        "acl browser req.hdr(user-agent) -m sub -i " + _BROWSERS,
        "acl wants_json req.hdr(accept) -m sub -i application/json",
        "acl wants_html req.hdr(accept) -m sub -i text/html",
        "acl by_script req.hdr(sec-fetch-mode) -i cors no-cors same-origin websocket",
        "acl by_person req.hdr(sec-fetch-mode) -i navigate",
        "acl by_library req.hdr(x-requested-with) -m found",
        "http-request set-var(txn.page) bool(true) if browser !by_script !by_library",
        "http-request set-var(txn.page) bool(true) if browser by_person",
        "http-request unset-var(txn.page) if wants_json !wants_html",
        f"http-request set-var(txn.route) {route}",
        f"http-request lua.await_routes if {unknown} {unfilled}",
        f"http-request set-var(txn.route) {route} if {unknown}",
        refuse(NOT_FOUND, unknown),
        refuse(STARTING, f"{unknown} {unfilled}"),
        _END,
        "http-request set-var(txn.address) var(txn.route),field(1,|)",
        "http-request set-var(txn.token) var(txn.route),field(2,|)",
        f"http-request set-var(txn.mask) var(txn.route),field(3,|) if !{envd}",
        "http-request set-var(txn.https) var(txn.route),field(4,|)",
        refuse(TOKEN_WRONG, f"{private} {several}"),
        refuse(TOKEN_WRONG, f"{private} !{{ {token},secure_memcmp(txn.token) }}"),
        refuse(TOKEN_MISSING, f"{private} !{{ {token} -m found }}"),
        _END,
        # Should txn.refusal not have been set, for want of memory.
        f"http-request deny if {private} !{{ {token},secure_memcmp(txn.token) }}",
        "http-request unset-var(txn.token)",
        f"http-request del-header {TOKEN_HEADER}",
        "http-request track-sc1 var(txn.id) table requests",
        refuse(BUSY, f"{{ sc_conn_cur(1) gt {max_requests // 4} }}"),
        *_count_open(),
        refuse(BUSY, f"{{ var(txn.open) -m int gt {max_requests} }}"),
        _END,
        *_wake(wake_socket),
        f"http-request set-header X-Forwarded-Host %[req.fhdr(host)] if {masked}",
        f"http-request lua.mask_host if {masked}",
        f"http-request set-header Host %[var(txn.mask)] if {masked}",
        f"http-request lua.speaks_https if {some_https}",
        "http-request set-var(txn.key) var(txn.port),concat(-,txn.id)",
        "http-request set-dst var(txn.address)",
        "http-request set-dst-port var(txn.port)",
    ]


def _count_open() -> list[str]:
    first, *others = (f"be_conn(sandbox_{way})" for way in (DIRECT, *VIA_CONNECTOR))
    return [
        f"http-request set-var(txn.open) {first}",
        *(f"http-request set-var(txn.open) {other},add(txn.open)" for other in others),
    ]


def _wake(socket: Path | None) -> list[str]:
    """Rules for the request to a paused sandbox that it is to wake."""
    asleep = f"{{ var(txn.address) -m str {ASLEEP} }}"
    if socket is None:
        return [refuse(NOT_FOUND, asleep), _END]
    # The SDKs ask for it to see whether a sandbox runs, also just after its pause cut them off.
    health = f"{{ var(txn.port) -m int {ENVD_PORT} }} {{ path /health }}"
    return [
        refuse(NOT_FOUND, f"{asleep} {health}"),
        _END,
        f"http-request lua.wake {socket} if {asleep}",
        refuse(NOT_RESUMED, asleep),
        refuse(UNAUTHORIZED, f"{asleep} {{ var(txn.woken) -m str denied }}"),
        refuse(NOT_FOUND, f"{asleep} {{ var(txn.woken) -m str gone }}"),
        _END,
    ]


REFUSED = "{ var(txn.refusal) -m found }"
_END = f"http-request allow if {REFUSED}"
"""Spares a refused request the rest of an entry's rules."""


def refuse(answer: Answer, condition: str) -> str:
    """A rule of an entry. Of several for the same request, the last one counts."""
    return f"http-request set-var(txn.refusal) str({answer.name}) if {condition}"


def refusals(directory: Path) -> list[str]:
    """The backend of refused requests. `directory` holds the pages.

    Programs that are still sending get their JSON once the body has come in. HAProxy closes the
    connection when it answers before, and a client then sees that and not the answer.
    """
    lines = [
        *HAS_BODY,
        # This one sends its body when it is told to.
        "acl asks_first req.fhdr(expect) -m found",
        f"acl never_heard var(txn.refusal) -m str {BUSY.name}",
        "http-request use-service lua.refuse if has_body !asks_first !never_heard "
        "!{ var(txn.page) -m found }",
    ]
    for answer in ANSWERS:
        condition = f"{{ var(txn.refusal) -m str {answer.name} }}"
        lines += answer_with(answer, "http-request", directory, condition)
    return lines


def answer_with(answer: Answer, rules: str, directory: Path, condition: str) -> list[str]:
    """Rules that give `answer`, as a page or as JSON. `rules` is http-request or http-response."""
    start = f"{rules} return status {answer.status} content-type"
    return [
        f"{start} '{HTML_TYPE}' lf-file {answer.file(directory, html=True)} "
        f"hdr Cache-Control no-store if {condition} {{ var(txn.page) -m found }}",
        f"{start} '{JSON_TYPE}' lf-file {answer.file(directory, html=False)} "
        f"hdr Cache-Control no-store if {condition}",
    ]
