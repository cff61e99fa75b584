"""What a parser says when a connection shows no usable name. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class NoNameReason(StrEnum):
    """Why no name can be trusted. Stable: they appear in the decision log as `detail`."""

    TIMEOUT = "timeout"
    CLOSED_EARLY = "closed_early"

    NOT_TLS = "not_tls"
    TLS_MALFORMED = "tls_malformed"
    TLS_TOO_LARGE = "tls_too_large"
    TLS_NO_SERVER_NAME = "tls_no_server_name"
    TLS_SEVERAL_NAMES = "tls_several_names"
    TLS_INVALID_NAME = "tls_invalid_name"

    NOT_HTTP = "not_http"
    HTTP_TOO_LARGE = "http_too_large"
    HTTP_BARE_LF = "http_bare_lf"
    HTTP_BARE_CR = "http_bare_cr"
    HTTP_NUL = "http_nul"
    HTTP_CONTROL_CHARACTER = "http_control_character"
    HTTP_BAD_HEADER = "http_bad_header"
    HTTP_FOLDED_HEADER = "http_folded_header"
    HTTP_BAD_TARGET = "http_bad_target"
    HTTP_CONNECT = "http_connect"
    HTTP2 = "http2"
    HTTP_NO_HOST = "http_no_host"
    HTTP_SEVERAL_HOSTS = "http_several_hosts"
    HTTP_INVALID_HOST = "http_invalid_host"
    HTTP_AUTHORITY_DIFFERS = "http_authority_differs"
    HTTP_BAD_CONTENT_LENGTH = "http_bad_content_length"
    HTTP_BAD_TRANSFER_ENCODING = "http_bad_transfer_encoding"
    HTTP_LENGTH_AND_ENCODING = "http_length_and_encoding"
    HTTP_BAD_UPGRADE = "http_bad_upgrade"


@dataclass(frozen=True, slots=True)
class NoName:
    """No name was shown, or none that means the same to everybody who reads these bytes."""

    reason: NoNameReason
