"""Who may call: access token, chosen user, signed URLs. Pure."""

from __future__ import annotations

import binascii
import hashlib
import hmac
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Operation = Literal["read", "write"]

UNAUTHORIZED = (
    "unauthorized access, please provide a valid access token or method signing if supported"
)
"""Text of the 401 that the SDKs know."""


class AuthError(Exception):
    """The request is not authorised; the text goes into the 401 answer."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """The sandbox's token, compared in constant time. An unset token lets everyone in."""

    value: str | None

    def matches(self, given: str | None) -> bool:
        """Whether `given` is the token, or no token is set."""
        if self.value is None:
            return True
        return given is not None and _same(self.value, given)

    def check_signed(
        self, given: str | None, query: Mapping[str, str], operation: Operation, now: float
    ) -> None:
        """Check a `/files` request, which may carry a signature in place of the token.

        A token that is sent decides alone: a wrong one is an error even beside a good signature.

        :param given: value of `X-Access-Token`, if sent.
        :param query: the query parameters, decoded.
        :param now: seconds since the epoch, against `signature_expiration`.
        :raises AuthError: with the reason.
        """
        if self.value is None:
            return
        if given:
            if not _same(self.value, given):
                raise AuthError("access token present in header but does not match")
            return

        signature = query.get("signature")
        if signature is None:
            raise AuthError("missing signature query parameter")

        expiration = query.get("signature_expiration")
        expected = sign(
            self.value, query.get("path", ""), operation, query.get("username", ""), expiration
        )
        if not _same(expected, signature):
            raise AuthError("invalid signature")
        if expiration is not None and not _still_valid(expiration, now):
            raise AuthError("signature is already expired")


def _same(secret: str, given: str) -> bool:
    return hmac.compare_digest(secret.encode(), given.encode(errors="surrogateescape"))


def _still_valid(expiration: str, now: float) -> bool:
    if not expiration.isascii() or not expiration.isdigit() or len(expiration) > 18:
        return False
    return int(expiration) >= int(now)


def sign(token: str, path: str, operation: Operation, username: str, expiration: str | None) -> str:
    """Signature of a file URL, as the SDKs compute it.

    :param path: the query parameter as given, not resolved.
    :param username: empty if the URL names none.
    :param expiration: seconds since the epoch, in decimal; None for a URL that does not expire.
    """
    parts = [path, operation, username, token]
    if expiration is not None:
        parts.append(expiration)
    digest = hashlib.sha256(":".join(parts).encode(errors="surrogateescape")).digest()
    return "v1_" + b64encode(digest).decode().rstrip("=")


def basic_username(header: str | None) -> str | None:
    """User name of an `Authorization: Basic` header; None if there is no such header."""
    scheme, _, credentials = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = b64decode(credentials.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    name, separator, _ = decoded.partition(":")
    return name if separator else None
