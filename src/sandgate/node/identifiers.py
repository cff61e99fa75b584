"""Names and tokens of sandboxes."""

from __future__ import annotations

import re
import secrets
import string

_ALPHABET = string.ascii_lowercase + string.digits
_LETTERS = 20
_IDS = len(_ALPHABET) ** _LETTERS
_ID = re.compile(r"[a-z0-9]{1,32}")
ID_PATTERN = "^[a-z0-9]{1,32}(-[a-z0-9]+)?$"
"""What :func:`parse_sandbox_id` takes."""
_SUFFIX = re.compile(r"[a-z0-9]+")
_TOKEN_BYTES = 32


def new_sandbox_id() -> str:
    """`i` and 20 letters or digits: 103 bits, and a valid part of a DNS label."""
    # One number: a call for each letter would ask the kernel thirty times.
    number, letters = secrets.randbelow(_IDS), []
    for _ in range(_LETTERS):
        number, rest = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[rest])
    return "i" + "".join(letters)


def new_snapshot_id() -> str:
    """`s` and 20 letters or digits."""
    return "s" + new_sandbox_id()[1:]


def new_token() -> str:
    """A secret of 64 hex digits."""
    return secrets.token_hex(_TOKEN_BYTES)


def parse_sandbox_id(text: str) -> str | None:
    """The id that a client means; None if it can be none.

    Old SDKs append `-<client id>`, which counts for nothing (wire contract 2.2).
    """
    name, dash, suffix = text.partition("-")
    if not _ID.fullmatch(name) or (dash and not _SUFFIX.fullmatch(suffix)):
        return None
    return name
