"""What the ingress gate answers itself: JSON for programs, a page for a person. Pure: no I/O.

An :class:`Answer` is about a sandbox, an :class:`Error` about a request that may not even have
said to whom it goes.

Everything here is rendered once, when the node starts, into HAProxy log-format strings;
`%[...]` is filled in per request. A sandbox id and a port have been checked by then; the host is
whatever the client sent and passes through the converter `lua.html` (see `gate.lua`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from sandgate.ingress.layout import MAX_HEADERS

JSON_TYPE = "application/json; charset=utf-8"
HTML_TYPE = "text/html; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"

TOKEN_HEADER = "e2b-traffic-access-token"  # noqa: S105 - the name of a header, not its value
"""Header that callers of a private sandbox show (e2b-wire-contract, section 0)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One refusal. `message` is on the wire and compared by clients; `advice` is for a person."""

    name: str
    status: int
    message: str
    title: str
    advice: str
    with_port: bool = False
    """Whether the JSON has the field `port`."""

    def file(self, directory: Path, *, html: bool) -> Path:
        """Where one of the bodies is written to."""
        return directory / f"{self.name}.{'html' if html else 'json'}"

    def json(self) -> str:
        """The JSON body, as a log-format string."""
        port = '"port":%[var(txn.port)],' if self.with_port else ""
        return (
            f'{{"sandboxId":"%[var(txn.id)]","message":"{self.message}",'
            f'{port}"code":{self.status}}}'
        )

    def lua(self) -> str:
        """A statement for `gate.lua` that tells the parts of :meth:`json`."""
        return (
            f'REFUSALS["{self.name}"] = {{ status = {self.status}, '
            f'message = "{self.message}", with_port = {str(self.with_port).lower()} }}'
        )

    def html(self) -> str:
        """The page, as a log-format string."""
        return _PAGE.format(
            title=self.title, status=self.status, message=self.message, advice=self.advice
        ).strip()


NOT_FOUND = Answer(
    "not-found",
    502,
    "The sandbox was not found",
    "Sandbox Not Found",
    "It may have reached the end of its life or been killed. Create a new one, or check the "
    "address for a typing error.",
)
PORT_CLOSED = Answer(
    "port-closed",
    502,
    "The sandbox is running but port is not open",
    "Closed Port",
    "Nothing in the sandbox listens on this port. Start the server, or look at its output if it "
    "should be running, and reload this page.",
    with_port=True,
)
NO_ANSWER = Answer(
    "no-answer",
    502,
    "The server in the sandbox gave no valid HTTP response or one with more than 30 KB of headers",
    "No Answer",
    "The server took the request but did not answer it in HTTP. It may have crashed, or speak "
    "another protocol.",
    with_port=True,
)
SLOW = Answer(
    "slow",
    504,
    "The server in the sandbox did not answer in time",
    "No Answer in Time",
    "The server took the request and has been silent since.",
    with_port=True,
)
TOKEN_MISSING = Answer(
    "token-missing",
    403,
    f"Sandbox is secured with traffic access token. Token header '{TOKEN_HEADER}' is missing",
    "Private Sandbox",
    "This address answers only to requests that carry the sandbox's traffic access token.",
)
TOKEN_WRONG = Answer(
    "token-wrong",
    403,
    "Sandbox is secured with traffic access token. "
    f"Provided token in header '{TOKEN_HEADER}' is invalid",
    "Private Sandbox",
    "The request carried a traffic access token, but not this sandbox's.",
)
BUSY = Answer(
    "busy",
    429,
    "Too many requests are open at once",
    "Too Many Requests",
    "Close some connections and try again.",
    with_port=True,
)
UNAUTHORIZED = Answer(
    "unauthorized",
    401,
    "unauthorized access, please provide a valid access token or method signing if supported",
    "Paused Sandbox",
    "This sandbox is paused, and only a request that carries its access token resumes it.",
)
NOT_RESUMED = Answer(
    "not-resumed",
    503,
    "The sandbox is paused and could not be resumed",
    "Paused Sandbox",
    "Try again in a moment; what went wrong is in the log of the node.",
)
STARTING = Answer(
    "starting",
    503,
    "The node is starting and does not know its sandboxes yet",
    "Starting",
    "Try again in a moment.",
)
ANSWERS = (
    NOT_FOUND,
    STARTING,
    PORT_CLOSED,
    NO_ANSWER,
    SLOW,
    TOKEN_MISSING,
    TOKEN_WRONG,
    BUSY,
    UNAUTHORIZED,
    NOT_RESUMED,
)
"""All answers about a sandbox; sources: e2b-wire-contract 6.4 and e2b-network-semantics 2.3."""


@dataclass(frozen=True, slots=True)
class Error:
    """What HAProxy says instead of its own page for `status`, in the shape of the API's errors."""

    status: int
    message: str

    def file(self, directory: Path) -> Path:
        """Where the answer is written to."""
        return directory / f"{self.status}.http"

    def body(self) -> str:
        """The JSON body."""
        return json.dumps({"code": self.status, "message": self.message}, separators=(",", ":"))

    def answer(self) -> str:
        """The whole HTTP answer, for `errorfile`. After it the connection is closed."""
        body = self.body()
        return (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
            f"Content-Type: {JSON_TYPE}\r\nContent-Length: {len(body)}\r\n"
            f"Cache-Control: no-store\r\nConnection: close\r\n\r\n{body}"
        )


ERRORS = (
    Error(
        400,
        "The request is not valid HTTP, or its head is too large: "
        f"30 KB and {MAX_HEADERS} headers are possible",
    ),
    Error(408, "The request did not arrive in time"),
    Error(413, "The request is too large"),
    Error(500, "The gate could not handle the request"),
    Error(501, "The request asks for a part of HTTP that the gate does not know"),
    Error(502, "The gate got no valid answer"),
    Error(503, "The gate could not pass the request on"),
    Error(504, "The gate got no answer in time"),
)
"""For all the statuses that every HAProxy since 2.4 may end a request with by itself."""


# No percent sign may appear but before `[`: HAProxy would read it as a log-format item.
_PAGE = """
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><meta name="color-scheme" content="light dark">
<style>
:root {{ --back: #f6f7f9; --card: #fff; --ink: #1b1f27; --soft: #5c6472; --line: #dfe3ea;
  --mark: #b4541a }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #111419; --card: #1a1f27;
  --ink: #e8ebf0; --soft: #98a2b3; --line: #2c3440; --mark: #f0a067 }} }}
* {{ box-sizing: border-box }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem;
  background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif }}
main {{ width: min(34rem, 100vw - 3rem); padding: 2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px }}
.status {{ margin: 0; color: var(--mark); font-weight: 600; letter-spacing: .04em }}
h1 {{ margin: .2rem 0 .8rem; font-size: 1.5rem; line-height: 1.25 }}
p {{ margin: .4rem 0 }}
.soft {{ color: var(--soft) }}
dl {{ margin: 1.4rem 0 0; padding-top: 1rem; border-top: 1px solid var(--line); display: grid;
  grid-template-columns: max-content 1fr; gap: .3rem 1.2rem }}
dt {{ color: var(--soft) }}
dd {{ margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
</style></head>
<body><main>
<p class="status">{status}</p>
<h1>{title}</h1>
<p>{message}.</p>
<p class="soft">{advice}</p>
<dl><dt>Sandbox</dt><dd>%[var(txn.id)]</dd><dt>Host</dt><dd>%[var(txn.host),lua.html]</dd>\
<dt>Port</dt><dd>%[var(txn.port)]</dd></dl>
</main></body></html>
"""
