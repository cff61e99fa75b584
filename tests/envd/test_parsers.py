"""envd's parsers, without sockets: multipart, Connect, kernel events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.envd.connect import (
    Code,
    ConnectError,
    Frame,
    FrameDecoder,
    Message,
    encode_end,
    encode_frame,
)
from sandgate.envd.entries import permissions, timestamp
from sandgate.envd.inotify import RawEvent, parse_events
from sandgate.envd.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
)


def parse(body: bytes, cuts: list[int]) -> list[tuple[dict[str, str], bytes]]:
    parser = MultipartParser("b")
    parts: list[tuple[dict[str, str], bytes]] = []
    ended = 0
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts)})
    for start, end in pairwise(edges):
        for event in parser.feed(body[start:end]):
            match event:
                case PartBegin(headers):
                    assert ended == len(parts)
                    parts.append((headers, b""))
                case PartData(data):
                    assert data
                    parts[-1] = (parts[-1][0], parts[-1][1] + data)
                case PartEnd():
                    ended += 1
    parser.close()
    assert ended == len(parts)
    return parts


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\r\n--", b"\r\n--c", b"--b", b"\r"])),
    st.lists(st.integers(0, 2000)),
)
def test_multipart_content_survives_any_split(contents: list[bytes], cuts: list[int]) -> None:
    contents = [content for content in contents if b"\r\n--b" not in b"\r\n" + content]
    body = b"preamble\r\n" if cuts else b""
    for content in contents:
        body += b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + content + b"\r\n"
    body += b"--b--\r\nepilogue"
    assert [content for _, content in parse(body, cuts)] == contents


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n",
        b"--b\r\nA: b\r\n\r\ncontent",
        b"--b\r\nno colon\r\n\r\n\r\n--b--",
        b"--bX\r\n\r\n\r\n--b--",
        b"--b\r\n" + b"A: " + b"x" * 20_000,
    ],
)
def test_a_broken_multipart_body_is_an_error(body: bytes) -> None:
    with pytest.raises(MultipartError):
        parse(body, [])


@given(st.binary(max_size=300))
def test_any_multipart_body_is_parsed_or_refused(body: bytes) -> None:
    try:
        parse(b"--b\r\n" + body, [3])
    except MultipartError:
        pass


@pytest.mark.parametrize("boundary", ["", "ü", "x" * 201])
def test_an_impossible_boundary_is_refused(boundary: str) -> None:
    with pytest.raises(MultipartError):
        MultipartParser(boundary)


@given(st.lists(st.binary(max_size=50), max_size=5), st.integers(1, 7))
def test_frames_survive_any_split(payloads: list[bytes], step: int) -> None:
    data = b"".join(encode_frame(payload) for payload in payloads)
    decoder = FrameDecoder(100)
    found = [f for at in range(0, len(data), step) for f in decoder.feed(data[at : at + step])]
    assert found == [Frame(0, payload) for payload in payloads] and not decoder.partial


def test_the_final_frame_says_what_went_wrong() -> None:
    error = ConnectError(Code.NOT_FOUND, "gone")
    expected = b'{"error": {"code": "not_found", "message": "gone"}}'
    assert encode_end(error) == encode_frame(expected, 2)
    assert encode_end() == encode_frame(b"{}", 2)


@given(st.binary(max_size=100))
def test_any_message_is_parsed_or_refused(body: bytes) -> None:
    try:
        Message.parse(body)
    except ConnectError as error:
        assert error.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize("value", ["4294967296", -1, 1.5, True, "x", [], "٣"])
def test_a_number_that_is_no_uint32_is_refused(value: object) -> None:
    with pytest.raises(ConnectError, match="depth must be a number"):
        Message({"depth": value}).uint32("depth")


def test_numbers_bytes_and_names_have_all_forms_of_proto3_json() -> None:
    message = Message({"a_b": "7", "c": 7.0, "d": "_-8", "e": "/+8=", "f": None})
    assert (message.uint32("aB"), message.uint32("c"), message.uint32("f")) == (7, 7, 0)
    assert message.data("d") == message.data("e") == b"\xff\xef"
    assert "f" not in message


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (0o100644, "-rw-r--r--"),
        (0o040755, "drwxr-xr-x"),
        (0o041777, "dtrwxrwxrwx"),
        (0o120777, "Lrwxrwxrwx"),
        (0o104755, "urwxr-xr-x"),
        (0o102755, "grwxr-xr-x"),
        (0o020620, "Dcrw--w----"),
        (0o060660, "Drw-rw----"),
        (0o010600, "prw-------"),
        (0o140600, "Srw-------"),
    ],
)
def test_permissions_are_written_as_go_writes_them(mode: int, text: str) -> None:
    assert permissions(mode) == text


def test_timestamps_have_nanoseconds_also_before_the_epoch() -> None:
    assert timestamp(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"
    assert timestamp(-1) == "1969-12-31T23:59:59.999999999Z"


def test_kernel_events_are_cut_at_their_length() -> None:
    data = bytes.fromhex("01000000 00010000 00000000 10000000") + b"name" + bytes(12)
    data += bytes.fromhex("02000000 00040000 05000000 00000000")
    assert list(parse_events(data)) == [RawEvent(1, 0x100, 0, "name"), RawEvent(2, 0x400, 5, "")]
