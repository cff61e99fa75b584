"""Tells from a key who calls; notices at once when keys are added or revoked."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from sandgate.accounts.keyfile import read_owners
from sandgate.accounts.keys import KeyRejected, hash_key, is_key
from sandgate.accounts.owners import OPERATOR, AccountError, Caller

_log = logging.getLogger(__name__)


class KeyRing:
    """All keys of a node, by their hashes. Belongs to one thread.

    They are looked up by what only this process can compute of them, so that the time of a
    look-up tells nothing of which keys there are.
    """

    def __init__(self, operator_hash: str, path: Path | None = None) -> None:
        """`path` is the file of the other owners' keys, which need not exist."""
        self._operator_hash = operator_hash
        self._path = path
        self._blind = secrets.token_bytes(32)
        self._seen: tuple[int, ...] | None = None
        self._callers: dict[bytes, tuple[str, Caller]] = {}
        self._fill({})

    def identify(self, key: str | None) -> Caller:
        """Who `key` stands for. Raises KeyRejected."""
        if not key:
            raise KeyRejected("the API key is missing: send it in the X-API-KEY header")
        if not is_key(key):
            raise KeyRejected(
                "the API key is malformed: it is 'e2b_' and 40 hexadecimal digits "
                "(`sandgate env` prints this node's)"
            )
        self._refresh()
        key_hash = hash_key(key)
        known, caller = self._callers.get(self._blinded(key_hash), ("", None))
        if caller is None or not hmac.compare_digest(key_hash, known):
            raise KeyRejected("the API key is not this node's (`sandgate env` prints it)")
        return caller

    def _refresh(self) -> None:
        """Read the file again if it is another one than before; asking costs a microsecond."""
        if self._path is None:
            return
        seen: tuple[int, ...] = ()
        with contextlib.suppress(FileNotFoundError):
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._fill(read_owners(self._path).callers())
        except (AccountError, OSError) as error:
            # Which keys are revoked cannot be told: none of them is good but the operator's.
            _log.error("no key but the operator's is accepted: %s", error)
            self._fill({})

    def _fill(self, callers: dict[str, Caller]) -> None:
        everyone = {**callers, self._operator_hash: Caller(OPERATOR)}
        self._callers = {
            self._blinded(key_hash): (key_hash, caller) for key_hash, caller in everyone.items()
        }

    def _blinded(self, key_hash: str) -> bytes:
        return hmac.digest(self._blind, key_hash.encode(), hashlib.sha256)
