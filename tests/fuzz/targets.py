"""The targets by name. Each takes bytes, and raises where a property does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fuzz.hello_and_dns import client_hello, dns_query, dns_response
from fuzz.others import connect_frames, connect_message, multipart, policy
from fuzz.web import http_body, http_head, http_response

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        client_hello,
        connect_frames,
        connect_message,
        dns_query,
        dns_response,
        http_body,
        http_head,
        http_response,
        multipart,
        policy,
    )
}

CORPUS = Path(__file__).parent / "corpus"
"""A directory for each target; its files are inputs that have once been interesting."""

MAX_INPUT = 4096
"""Bytes of an input that is made up."""


def corpus(name: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
