"""Reads one HTTP/1.x request head and says which name it is for. Pure: no I/O.

Stricter than RFC 9112 asks of a server: whatever two implementations could read differently has no
name, because the head is sent on verbatim and must mean to the origin what it meant here. One thing
is left out: an offer to go on in HTTP/2, which many clients make and no origin need take up (RFC
9110, section 7.8). Accepted, it would end the judging of requests.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sandgate.egress.no_name import NoName, NoNameReason
from sandgate.policy import normalise_name

MAX_HEAD = 65_536
"""Largest request head that is read, in bytes."""

CHUNKED = -1
"""Body length of a request that uses the chunked coding."""

_MAX_METHOD = 32
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
_METHOD_START = re.compile(_TOKEN + rb"{1,%d}" % _MAX_METHOD)
_REQUEST_LINE = re.compile(rb"([^ ]+) ([^ ]+) HTTP/(\d)\.(\d)")
_FIELD_NAME = re.compile(_TOKEN + rb"+")
_ABSOLUTE = re.compile(r"http://([^/?#@]*)([/?].*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"([^:@]+)(?::(\d{1,5}))?")
_LENGTH = re.compile(rb"0|[1-9]\d{0,17}")
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\Z)")
"""Control characters, and a CR that is followed by anything but the end of the line."""


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request head that has exactly one meaning."""

    method: str
    name: str
    """The host asked for, normalised."""
    size: int
    """Bytes that the head has taken, its empty line included."""
    head: bytes
    """The head as it is sent on: these bytes, but for an offer of HTTP/2."""
    body: int
    """Bytes of the body, or :data:`CHUNKED`."""
    websocket: bool
    """Asks for the connection to be upgraded to WebSocket."""


class RequestHeadParser:
    """Feed it what the client sends until it answers.

    Each line is judged when it is complete, and forbidden bytes as they arrive, so that what is
    not HTTP is known at once. The answer depends on the bytes alone, not on their segmentation.
    """

    __slots__ = ("_checked", "_headers", "_line", "_minor", "_request", "_result", "raw")

    def __init__(self) -> None:
        self.raw = bytearray()
        """Everything fed so far: the head, and possibly what follows it."""
        self._line = 0  # where the current line starts
        self._checked = 0  # up to where the current line was searched for forbidden bytes
        self._request: tuple[str, str] | None = None
        self._minor = 1
        self._headers: list[tuple[bytes, bytes]] = []
        self._result: RequestHead | NoName | None = None

    def feed(self, data: bytes | bytearray) -> RequestHead | NoName | None:
        """Take in `data`. None: more is needed. Else the head, or why it has no name."""
        self.raw += data
        while self._result is None:
            if self._request is None and not self._may_be_request():
                self._result = NoName(NoNameReason.NOT_HTTP)
                break
            end = self.raw.find(b"\n", self._checked, MAX_HEAD)
            fresh = self.raw[self._checked : end if end >= 0 else MAX_HEAD]
            bad = _FORBIDDEN.search(fresh)
            if bad is not None:
                self._result = NoName(_FORBIDDEN_REASONS.get(bad[0], _CONTROL))
            elif end >= 0 and not fresh.endswith(b"\r"):
                self._result = NoName(NoNameReason.HTTP_BARE_LF)
            elif end >= 0:
                line = bytes(self.raw[self._line : end - 1])
                self._line = self._checked = end + 1
                self._result = self._take_line(line)
            elif len(self.raw) >= MAX_HEAD:
                self._result = NoName(NoNameReason.HTTP_TOO_LARGE)
            else:
                # The last byte is looked at again: a CR may turn out to be bare.
                self._checked = max(self._line, len(self.raw) - 1)
                break
        return self._result

    def _may_be_request(self) -> bool:
        """Is what was fed a method, or the beginning of one?"""
        start = self.raw[: _MAX_METHOD + 1]
        method = _METHOD_START.match(start)
        if method is None:
            return not start
        return method.end() == len(start) <= _MAX_METHOD or start[method.end()] == 0x20

    def _take_line(self, line: bytes) -> RequestHead | NoName | None:
        if self._request is None:
            return self._take_request_line(line)
        if not line:
            return self._conclude()
        if line[0] in b" \t":
            return NoName(NoNameReason.HTTP_FOLDED_HEADER)
        name, colon, value = line.partition(b":")
        if not colon or not _FIELD_NAME.fullmatch(name):
            return NoName(NoNameReason.HTTP_BAD_HEADER)
        self._headers.append((name.lower(), value.strip(b" \t")))
        return None

    def _take_request_line(self, line: bytes) -> NoName | None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            return NoName(NoNameReason.NOT_HTTP)
        version = int(match[3]), int(match[4])
        if version == (2, 0):
            return NoName(NoNameReason.HTTP2)  # the preface of RFC 9113 section 3.4
        if version not in ((1, 0), (1, 1)):
            return NoName(NoNameReason.NOT_HTTP)
        method = match[1].decode("ascii")
        if method.upper() == "CONNECT":
            return NoName(NoNameReason.HTTP_CONNECT)
        self._request = (method, match[2].decode("latin-1"))
        self._minor = version[1]
        return None

    def _values(self, name: bytes) -> list[bytes]:
        return [value for key, value in self._headers if key == name]

    def _conclude(self) -> RequestHead | NoName:
        assert self._request is not None
        method, target = self._request
        hosts = self._values(b"host")
        if not hosts:
            return NoName(NoNameReason.HTTP_NO_HOST)
        if len(hosts) > 1:
            return NoName(NoNameReason.HTTP_SEVERAL_HOSTS)
        name = _authority_name(hosts[0].decode("latin-1"))
        if name is None:
            return NoName(NoNameReason.HTTP_INVALID_HOST)
        if (reason := _check_target(method, target, name)) is not None:
            return NoName(reason)
        body = self._body_length()
        if isinstance(body, NoName):
            return body
        head = bytes(self.raw[: self._line])
        upgrades = [value.lower() for value in self._values(b"upgrade")]
        if upgrades == [b"h2c"]:
            head = _without_offer(head)
        elif upgrades not in ([], [b"websocket"]) or self._values(b"http2-settings"):
            return NoName(NoNameReason.HTTP_BAD_UPGRADE)
        return RequestHead(method, name, self._line, head, body, upgrades == [b"websocket"])

    def _body_length(self) -> int | NoName:
        lengths = self._values(b"content-length")
        codings = self._values(b"transfer-encoding")
        if lengths and codings:
            return NoName(NoNameReason.HTTP_LENGTH_AND_ENCODING)
        if codings:
            if len(codings) > 1 or codings[0].lower() != b"chunked" or self._minor == 0:
                return NoName(NoNameReason.HTTP_BAD_TRANSFER_ENCODING)
            return CHUNKED
        if not lengths:
            return 0
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            return NoName(NoNameReason.HTTP_BAD_CONTENT_LENGTH)
        return int(lengths[0])


def _without_offer(head: bytes) -> bytes:
    """A head, all of whose lines end with CRLF, without its offer of HTTP/2 (RFC 7540, 3.2)."""
    kept = []
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() in _OFFER:
            continue
        if name.lower() == b"connection":
            options = [option.strip(b" \t") for option in value.split(b",")]
            left = [option for option in options if option.lower() not in _OFFER]
            if not left:
                continue
            line = b"Connection: " + b", ".join(left)
        kept.append(line)
    return b"\r\n".join(kept)


def _check_target(method: str, target: str, name: str) -> NoNameReason | None:
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return None
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return NoNameReason.HTTP_BAD_TARGET
    if _authority_name(absolute[1]) != name:
        return NoNameReason.HTTP_AUTHORITY_DIFFERS
    return None


def _authority_name(authority: str) -> str | None:
    """The name in `name` or `name:port`, normalised; None if it is anything else."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or not authority.isascii():
        return None
    if match[2] is not None and not 0 < int(match[2]) <= 65_535:
        return None
    return normalise_name(match[1])


_OFFER = (b"upgrade", b"http2-settings")
"""Fields of an offer of HTTP/2, and what `Connection` says of them."""
_CONTROL = NoNameReason.HTTP_CONTROL_CHARACTER
_FORBIDDEN_REASONS = {b"\x00": NoNameReason.HTTP_NUL, b"\r": NoNameReason.HTTP_BARE_CR}
