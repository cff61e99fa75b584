"""HTTP header fields of file transfers: codings, ranges, dates, file names. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote, unquote_to_bytes

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
_PARAMETER = re.compile(r';\s*([^\s=;]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_MAX_WEIGHT_DIGITS = 5
_PLAIN_NAME = re.compile(r"[A-Za-z0-9!#$&+.^_`|~-]+", re.ASCII)


class NotAcceptableError(ValueError):
    """The client accepts no coding that can be had."""


class UnsatisfiableRangeError(ValueError):
    """No byte of the file is in the range."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Part of a file, the last byte included."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.last - self.first + 1


def wants_gzip(accept_encoding: str | None, identity_only: bool = False) -> bool:
    """Whether to compress for a client.

    A client that names gzip alone asks for it. One that lists all that its HTTP library can decode
    ("gzip, deflate, br") is as well served with the plain file, which costs no time to make.

    :param identity_only: the file can only be served plain, because a part of it is asked for.
    :raises NotAcceptableError: if the client refuses what would be left to choose.
    """
    weights: dict[str, float] = {}
    for item in (accept_encoding or "").lower().split(","):
        coding, _, parameters = item.partition(";")
        if coding.strip():
            weights[coding.strip()] = _weight(parameters)
    identity = weights.get("identity", weights.get("*", 1.0))
    gzip = weights.get("gzip", weights.get("*", 0.0))
    if identity_only or gzip <= 0:
        if identity <= 0:
            raise NotAcceptableError(f"no acceptable encoding in '{accept_encoding}'; allow gzip")
        return False
    if identity <= 0:
        return True
    named = [coding for coding, weight in weights.items() if weight > 0]
    return named == ["gzip"] or (set(named) == {"gzip", "identity"} and gzip > identity)


def _weight(parameters: str) -> float:
    name, _, value = parameters.partition("=")
    if name.strip() != "q" or len(value.strip()) > _MAX_WEIGHT_DIGITS:
        return 1.0
    try:
        return float(value)
    except ValueError:
        return 1.0


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The one range that is asked for; None to send all.

    As RFC 9110 allows, several ranges and malformed ones are ignored.

    :raises UnsatisfiableRangeError: if the range lies behind the end.
    """
    match = _RANGE.fullmatch((header or "").replace(" ", ""))
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size - int(last)), size - 1
    else:
        start, end = int(first), min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    if start >= size or start > end:
        raise UnsatisfiableRangeError(f"range {header} is not within the {size} bytes of the file")
    return ByteRange(start, end)


def http_date(seconds: float) -> str:
    """An HTTP date, whole seconds.

    :param seconds: since the epoch.
    """
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)


def parse_http_date(header: str | None) -> float | None:
    """Seconds since the epoch, or None if there is no valid date."""
    try:
        return parsedate_to_datetime(header or "").timestamp()
    except (ValueError, OverflowError):
        return None


def content_disposition(name: str) -> str:
    """`Content-Disposition` of a download called `name`."""
    if _PLAIN_NAME.fullmatch(name):
        return f"inline; filename={name}"
    if name.isascii() and name.isprintable():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'
    return f"inline; filename*=utf-8''{quote(name, safe='', errors='replace')}"


def header_parameters(value: str) -> tuple[str, dict[str, str]]:
    """Split a field such as `form-data; name="file"; filename="a/b"`.

    Quoted pairs are resolved and `name*=utf-8''…` decoded; nothing else is changed, so that a file
    name keeps its slashes.
    """
    head, _, _ = value.partition(";")
    parameters: dict[str, str] = {}
    for match in _PARAMETER.finditer(value, len(head)):
        key, text = match[1].lower(), match[2].strip()
        if text.startswith('"'):
            text = re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)
        if key.endswith("*"):
            charset, _, rest = text.partition("'")
            if charset.lower() == "utf-8":
                encoded = rest.partition("'")[2]
                parameters[key[:-1]] = unquote_to_bytes(encoded).decode(errors="replace")
        else:
            parameters.setdefault(key, text)
    return head.strip().lower(), parameters
