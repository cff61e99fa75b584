"""Lines on their way to one client."""

from __future__ import annotations

import asyncio
from collections import deque

from sandgate.interpreter.messages import Event, encode

_HIGH = 4 << 20


class Sink:
    """Bounded: who puts waits while the client does not read. Takes anything once closed."""

    def __init__(self) -> None:
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._closed = False
        self._changed = asyncio.Condition()

    async def put(self, event: Event) -> None:
        """Add a line. One may exceed the bound, or none that long could pass."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._size < _HIGH)
            if not self._closed:
                line = encode(event)
                self._lines.append(line)
                self._size += len(line)
                self._changed.notify_all()

    async def take(self, seconds: float) -> bytes | None:
        """All lines that are there; None if none came within `seconds`."""
        async with self._changed:
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait_for(lambda: bool(self._lines))
            except TimeoutError:
                return None
            data = b"".join(self._lines)
            self._lines.clear()
            self._size = 0
            self._changed.notify_all()
            return data

    async def close(self) -> None:
        """Nobody will take any more."""
        async with self._changed:
            self._closed = True
            self._lines.clear()
            self._changed.notify_all()
