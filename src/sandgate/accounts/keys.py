"""API keys: `e2b_` and 40 hexadecimal digits, as the SDKs accept. Pure but for chance."""

from __future__ import annotations

import hashlib
import re
import secrets

_KEY = re.compile(r"e2b_[0-9a-f]{40}")
_ID_DIGITS = 10


class KeyRejected(Exception):
    """The key shown opens nothing here. The text is meant for the user."""


def new_key() -> str:
    """A key of 160 random bits."""
    return f"e2b_{secrets.token_hex(20)}"


def is_key(text: str) -> bool:
    """Whether `text` has the form of a key."""
    return _KEY.fullmatch(text) is not None


def hash_key(key: str) -> str:
    """What is kept of a key: its SHA-256.

    Neither salted nor slow, as a password's would be: nobody can try 2^160 keys, nor has a table
    of them, and a slow hash would let strangers keep the node busy with wrong keys.
    """
    return hashlib.sha256(key.encode()).hexdigest()


def key_id(key_hash: str) -> str:
    """What people call a key. The beginning of the hash: it tells nothing of the key."""
    return key_hash[:_ID_DIGITS]
