from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egress.hello import (
    extension,
    genuine,
    hello,
    message,
    records,
    server_names,
    vector,
)
from sandgate.egress.client_hello import MAX_RECORDS, ClientHelloParser
from sandgate.egress.no_name import NoName, NoNameReason

GOOD = server_names(b"good.test")
PADDING = extension(21, bytes(500))


def parse(data: bytes, step: int | None = None) -> str | NoNameReason | None:
    parser = ClientHelloParser()
    result = None
    for start in range(0, len(data), step or len(data) or 1):
        result = parser.feed(data[start : start + (step or len(data))])
        if result is not None:
            break
    else:
        assert parser.raw == data
    return result.reason if isinstance(result, NoName) else result


NAMED = {
    "what OpenSSL sends": (genuine("good.test"), "good.test"),
    "upper case": (hello(server_names(b"GOOD.Test")), "good.test"),
    "trailing dot": (hello(server_names(b"good.test.")), "good.test"),
    "name after 16 KiB": (hello(extension(21, bytes(16_300)), GOOD), "good.test"),
    "name after 50 KiB": (hello(extension(21, bytes(50_000)), GOOD), "good.test"),
    "one byte a record": (hello(GOOD, size=1), "good.test"),
    "header cut in two records": (hello(GOOD, PADDING, size=3), "good.test"),
}


@pytest.mark.parametrize("step", [None, 1, 6, 1460])
@pytest.mark.parametrize("case", NAMED)
def test_a_name_is_read_however_the_hello_is_cut(case: str, step: int | None) -> None:
    data, name = NAMED[case]
    assert parse(data, step) == name


R = NoNameReason
UNNAMED: dict[str, tuple[bytes, NoNameReason]] = {
    "no extensions": (hello(), R.TLS_NO_SERVER_NAME),
    "other extensions only": (hello(PADDING), R.TLS_NO_SERVER_NAME),
    "two names": (hello(server_names(b"good.test", b"evil.test")), R.TLS_SEVERAL_NAMES),
    "two extensions": (hello(GOOD, server_names(b"evil.test")), R.TLS_SEVERAL_NAMES),
    "same extension twice": (hello(GOOD, GOOD), R.TLS_SEVERAL_NAMES),
    "another extension twice": (hello(GOOD, PADDING, PADDING), R.TLS_MALFORMED),
    "address": (hello(server_names(b"93.184.216.34")), R.TLS_INVALID_NAME),
    "IPv6 address": (hello(server_names(b"::1")), R.TLS_INVALID_NAME),
    "NUL": (hello(server_names(b"good.test\0.evil.test")), R.TLS_INVALID_NAME),
    "not ASCII": (hello(server_names("gööd.test".encode())), R.TLS_INVALID_NAME),
    "port": (hello(server_names(b"good.test:443")), R.TLS_INVALID_NAME),
    "empty name": (hello(server_names(b"")), R.TLS_INVALID_NAME),
    "empty label": (hello(server_names(b"good..test")), R.TLS_INVALID_NAME),
    "blank": (hello(server_names(b" good.test")), R.TLS_INVALID_NAME),
    "empty list": (hello(server_names()), R.TLS_MALFORMED),
    "another kind of name": (hello(server_names(b"good.test", kind=1)), R.TLS_MALFORMED),
    "list longer than said": (hello(extension(0, vector(2, b"\0") + b"x")), R.TLS_MALFORMED),
    "list shorter than said": (hello(extension(0, b"\0\x09\0")), R.TLS_MALFORMED),
    "bytes after the extensions": (records(message(GOOD, tail=b"x")), R.TLS_MALFORMED),
    "long session id": (records(message(GOOD, session=bytes(33))), R.TLS_MALFORMED),
    "message goes on in the record": (records(message(GOOD) + b"\x01"), R.TLS_MALFORMED),
    "HTTP": (b"GET / HTTP/1.1\r\n", R.NOT_TLS),
    "SSH": (b"SSH-2.0-x\r\n", R.NOT_TLS),
    "SSL 2": (b"\x80\x2e\x01\x00\x02", R.NOT_TLS),
    "version 2 record": (b"\x16\x02\x00", R.NOT_TLS),
    "alert": (b"\x15\x03\x01\x00\x02\x01\x00", R.NOT_TLS),
    "empty record": (b"\x16\x03\x01\x00\x00", R.TLS_MALFORMED),
    "record too long": (b"\x16\x03\x01\x40\x01", R.TLS_MALFORMED),
    "ServerHello": (b"\x16\x03\x01\x00\x04\x02\x00\x00\x00", R.TLS_MALFORMED),
    "alert between records": (
        hello(GOOD, size=20)[:25] + b"\x15\x03\x01\x00\x02\x01\x00",
        R.TLS_MALFORMED,
    ),
    "message too long": (b"\x16\x03\x01\x00\x04\x01\x01\x00\x01", R.TLS_TOO_LARGE),
    "too many records": (hello(extension(21, bytes(MAX_RECORDS)), size=1), R.TLS_TOO_LARGE),
}


@pytest.mark.parametrize("step", [None, 1, 6])
@pytest.mark.parametrize("case", UNNAMED)
def test_what_shows_no_clear_name_has_none(case: str, step: int | None) -> None:
    data, reason = UNNAMED[case]
    assert parse(data, step) is reason


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 60])
def test_an_unfinished_hello_waits_for_more(length: int) -> None:
    assert parse(genuine("good.test")[:length]) is None


def test_what_cannot_become_a_hello_is_known_at_its_first_byte() -> None:
    assert parse(b"S") is R.NOT_TLS
    assert parse(b"\x16\x03\x01\x01\x00\x02") is R.TLS_MALFORMED


@given(st.data())
def test_the_segmentation_never_changes_the_answer(data: st.DataObject) -> None:
    handshake = bytearray(message(GOOD, PADDING))
    stream = bytearray(records(bytes(handshake), data.draw(st.integers(1, 600))))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    whole = parse(bytes(stream))
    assert parse(bytes(stream), 1) == whole
    assert parse(bytes(stream), data.draw(st.integers(1, 200))) == whole


@given(st.binary(max_size=400))
def test_arbitrary_bytes_never_crash_it(data: bytes) -> None:
    for stream in (data, b"\x16\x03\x01" + data, records(b"\x01" + vector(3, data))):
        assert parse(stream) == parse(stream, 3)
