"""API keys: `e2b_` and 40 hexadecimal digits. Pure."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

_KEY = re.compile(r"e2b_[0-9a-f]{40}")


class KeyRejected(Exception):
    """The key shown is not the node's. The text is meant for the user."""


def hash_key(key: str) -> str:
    """What is kept of a key. Unsalted: the key itself is 160 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """Knows the hash of the node's key."""

    key_hash: str

    def check(self, key: str | None) -> None:
        """Raises :class:`KeyRejected` unless `key` is the node's."""
        if not key:
            raise KeyRejected("the API key is missing: send it in the X-API-KEY header")
        if not _KEY.fullmatch(key):
            raise KeyRejected(
                "the API key is malformed: it is 'e2b_' and 40 hexadecimal digits "
                "(`sandgate env` prints this node's)"
            )
        if not hmac.compare_digest(hash_key(key), self.key_hash):
            raise KeyRejected("the API key is not this node's (`sandgate env` prints it)")
