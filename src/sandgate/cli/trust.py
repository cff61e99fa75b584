"""Trust anchors that a client has set already, compared with those of the node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s*(.*?)\s*-----END CERTIFICATE-----", re.DOTALL)

TRUST_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
"""What programs must be told: those with OpenSSL (curl too), `requests`, Node."""

OVERRIDING = "CURL_CA_BUNDLE"
"""Counts for curl instead of `SSL_CERT_FILE` where it is set."""


def certificates(path: Path) -> set[str]:
    """The certificates in a PEM file, in a form that can be compared; none if it is unreadable."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return set()
    return {"".join(block.split()) for block in _PEM.findall(text)}


def given_up(wanted: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Trust variables in `environment` that hold certificates which `wanted` would no longer."""
    return [
        name
        for name in (*TRUST_VARIABLES, OVERRIDING)
        if name in wanted
        and (present := environment.get(name))
        and not certificates(Path(present)) <= certificates(Path(wanted[name]))
    ]
