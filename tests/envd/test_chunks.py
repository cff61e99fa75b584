"""Chunks of long answers: they hold what was sent, and their boundaries are few."""

from __future__ import annotations

import random
from typing import Any

import pytest

from envd.harness import frames
from sandgate.envd.chunks import SHORTEST, Chunks
from sandgate.envd.connect import encode_end, encode_frame
from sandgate.envd.process import encode_padding

END = encode_end(None)


def unwrap(body: bytes) -> list[bytes]:
    """The chunks of a body, parsed strictly."""
    found: list[bytes] = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        assert body[length : length + 2] == b"\r\n"
        if length == 0:
            assert body == b"\r\n"
            return found
        found.append(body[:length])
        body = body[length + 2 :]


def test_short_answers_have_a_chunk_for_each_piece() -> None:
    chunks = Chunks()
    chunks.filler = encode_padding
    body = chunks.wrap(b"one") + chunks.wrap(b"two") + b"".join(chunks.end(b"end"))
    assert unwrap(body) == [b"one", b"two", b"end"]


@pytest.mark.parametrize("seed", range(20))
def test_long_answers_have_few_chunks_and_nothing_is_lost(seed: int) -> None:
    choice = random.Random(seed)
    chunks = Chunks()
    chunks.filler = encode_padding
    sent = [
        encode_frame(b'"%d"' % number + b" " * choice.randrange(200_000)) for number in range(150)
    ]
    body = b"".join(map(chunks.wrap, sent)) + b"".join(chunks.end(END))
    found = unwrap(body)
    size = sum(map(len, sent))
    assert sum(map(len, found)) <= size * 1.26 + len(END) + SHORTEST
    late = sum(len(chunk) < 200_000 for chunk in found[len(found) // 2 :])
    assert len(found) < 60 and late <= 2
    told: list[tuple[int, Any]] = list(frames(iter([b"".join(found)])))
    assert [message for flags, message in told if flags == 0 and message != {}][: len(sent)] == [
        str(number) for number in range(len(sent))
    ]
    assert all(
        message == {"event": {"keepalive": {}}} for flags, message in told[len(sent) :] if not flags
    )
    assert told[-1] == (2, {})


def test_without_messages_that_mean_nothing_chunks_are_the_pieces() -> None:
    chunks = Chunks()
    pieces = [bytes(500_000)] * 8
    body = b"".join(map(chunks.wrap, pieces)) + b"".join(chunks.end(END))
    assert unwrap(body) == [*pieces, END]


@pytest.mark.parametrize("size", [SHORTEST, 65_536])
def test_a_padding_has_exactly_the_size(size: int) -> None:
    assert len(encode_padding(size)) == size
