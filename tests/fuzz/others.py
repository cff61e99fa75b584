"""Targets for policies as users write them, and for what envd reads of its clients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from types import NoneType

from fuzz.pieces import pieces
from sandgate.envd.connect import ConnectError, Frame, FrameDecoder, Message, encode_frame
from sandgate.envd.multipart import (
    MultipartError,
    MultipartParser,
    PartBegin,
    PartData,
    PartEnd,
)
from sandgate.policy import ALL_TRAFFIC, EgressPolicy, PolicyError, parse_policy

_LIMIT = 64
_ADDRESSES = tuple(map(IPv4Address, ("0.0.0.0", "8.8.8.8", "10.0.0.1", "255.255.255.255")))
_EVERYTHING = IPv4Network(ALL_TRAFFIC)
_BOUNDARIES = ("x", "-", "--", "a b", "0123456789" * 7)
_MAX_HELD = 16 << 10


def policy(data: bytes) -> None:
    """What is accepted is one policy, whatever way it takes; what is not is refused with a field.

    One entry a line: those after an empty line are denied.
    """
    allowed, _, denied = data.decode("utf-8", "replace").partition("\n\n")
    allow, deny = ([line for line in part.split("\n") if line] for part in (allowed, denied))
    try:
        parsed = parse_policy(allow, deny)
    except PolicyError as error:
        assert error.field in ("allowOut", "denyOut")
        assert error.entry is None or error.entry in allow + deny
        return
    assert EgressPolicy.from_json(json.loads(json.dumps(parsed.to_json()))) == parsed
    assert parse_policy(allow[::-1], deny * 2) == parsed
    assert not parsed.names or _EVERYTHING in parsed.deny.networks
    for address in _ADDRESSES:
        closed = parse_policy(allow, deny, internet=False)
        assert closed.decide(address).allowed <= parsed.decide(address).allowed
        assert parsed.decide(address, "a.example").allowed >= parsed.decide(address).allowed


def connect_frames(data: bytes) -> None:
    """Frames are the same however they come, and no byte is lost between them."""
    whole = _frames(iter([data]))
    for size in (1, 6):
        assert _frames(pieces(data, size)) == whole
    frames, error = whole
    again = b"".join(encode_frame(frame.payload, frame.flags) for frame in frames)
    assert data.startswith(again)
    assert all(len(frame.payload) <= _LIMIT for frame in frames)
    assert error is not None or len(data) - len(again) < 5 + _LIMIT


def connect_message(data: bytes) -> None:
    """Whatever a message has in a field, it is read as its type or refused by the field's name."""
    try:
        message = Message.parse(data)
    except ConnectError:
        return
    readers: list[tuple[Callable[[str], object], type | tuple[type, ...]]] = [
        (message.text, str),
        (message.texts, list),
        (message.text_map, dict),
        (message.flag, bool),
        (message.uint32, int),
        (message.data, bytes),
        (message.message, (Message, NoneType)),
        (lambda name: message.enum(name, {"A": 1}), int),
    ]
    for read, types in readers:
        try:
            value = read("f")
        except ConnectError as error:
            assert error.message.startswith("f ")
            continue
        assert isinstance(value, types)
        if read == message.uint32:
            assert isinstance(value, int) and 0 <= value < 1 << 32


def multipart(data: bytes) -> None:
    """The parts are the same however they come; one that was made of anything is read as that."""
    if not data:
        return
    boundary, data = _BOUNDARIES[data[0] % len(_BOUNDARIES)], data[1:]
    whole = _parts(boundary, iter([data]))
    for size in (1, 5):
        assert _parts(boundary, pieces(data, size)) == whole
    delimiter = b"--" + boundary.encode()
    if b"\r\n" + delimiter in b"\r\n" + data:
        return
    body = delimiter + b"\r\nA: b\r\n\r\n" + data + b"\r\n" + delimiter + b"--\r\n"
    assert _parts(boundary, iter([body])) == ([({"a": "b"}, data, True)], None, True)


def _frames(parts: Iterator[bytes]) -> tuple[list[Frame], object]:
    decoder = FrameDecoder(_LIMIT)
    found: list[Frame] = []
    for part in parts:
        try:
            found.extend(decoder.feed(part))
        except ConnectError as error:
            return found, error.code
    return found, None


def _parts(
    boundary: str, parts: Iterator[bytes]
) -> tuple[list[tuple[dict[str, str], bytes, bool]], str | None, bool]:
    """Headers, content and completeness of each part; what was wrong; whether the body ended."""
    parser = MultipartParser(boundary)
    found: list[tuple[dict[str, str], bytes, bool]] = []
    for piece in parts:
        try:
            for event in parser.feed(piece):
                match event:
                    case PartBegin(headers):
                        found.append((headers, b"", False))
                    case PartData(more):
                        headers, content, _ = found[-1]
                        found[-1] = (headers, content + more, False)
                    case PartEnd():
                        found[-1] = (*found[-1][:2], True)
        except MultipartError as error:
            return found, str(error), False
        assert len(parser._buffer) <= _MAX_HELD + len(piece)
    try:
        parser.close()
    except MultipartError:
        return found, None, False
    return found, None, True
