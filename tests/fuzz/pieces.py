"""Input in pieces, as a network may deliver it."""

from __future__ import annotations

from collections.abc import Iterator


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """`data` in pieces of `size` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]
