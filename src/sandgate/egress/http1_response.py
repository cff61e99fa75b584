"""Follows the responses on an HTTP/1.x connection, to know when one has ended. Pure: no I/O.

The bytes go to the sandbox as they are; only their framing matters here. A response that cannot
be framed counts as lasting until the connection closes, so that nothing is built on a guess.
"""

from __future__ import annotations

import re
from collections import deque

from sandgate.egress.http1 import CHUNKED
from sandgate.egress.http1_body import BodyFramer, FramingError

MAX_RESPONSE_HEAD = 65_536
"""Largest response head that is followed, in bytes."""

MAX_OUTSTANDING = 256
"""Most requests that may wait for their responses on one connection."""

_STATUS_LINE = re.compile(rb"HTTP/1\.\d (\d{3})(?: .*)?")
_LENGTH = re.compile(rb"\d{1,18}")


class ResponseTracker:
    """Counts requests sent and responses ended on one connection to an origin."""

    __slots__ = ("_framer", "_held", "_searched", "_waiting", "lost", "switched")

    def __init__(self) -> None:
        self._waiting: deque[tuple[str, bool]] = deque()
        self._framer: BodyFramer | None = None
        self._held = bytearray()  # of a head, or of a line of the chunked coding
        self._searched = 0
        self.lost = False
        """The current response ends when the connection does, or cannot be followed."""
        self.switched = False
        """The origin agreed (101) to speak WebSocket from here on."""

    @property
    def idle(self) -> bool:
        """Has every request been answered in full?"""
        return not self._waiting and not self.lost and not self.switched

    @property
    def full(self) -> bool:
        """Must the next request wait?"""
        return len(self._waiting) >= MAX_OUTSTANDING

    @property
    def unseen(self) -> int | None:
        """How many bytes follow that need not be looked at; None: all of them."""
        if self.lost:
            return None
        return 0 if self._framer is None else self._framer.left

    def skip(self) -> None:
        """Those that were :attr:`unseen` have come."""
        assert self._framer is not None
        self._framer.skip()
        if self._framer.done:
            self._end()

    def expect(self, method: str, websocket: bool) -> None:
        """A request was sent on; `websocket` if it asked for the upgrade."""
        self._waiting.append((method, websocket))

    def feed(self, data: bytes) -> None:
        """Bytes came from the origin."""
        if self.lost or self.switched:
            return
        if self._framer is not None and not self._held:
            taken = self._take_body(data)
            if taken == len(data):
                return
            data = data[taken:]
        self._held += data
        while self._held and not self.lost and not self.switched:
            before = len(self._held)
            if self._framer is None:
                self._take_head()
            else:
                taken = self._take_body(self._held)
                del self._held[:taken]
            if len(self._held) == before:
                break
        if self.lost or self.switched:
            self._held.clear()

    def _take_body(self, buffer: bytes | bytearray) -> int:
        assert self._framer is not None
        try:
            taken = self._framer.take(buffer)
        except FramingError:
            self.lost = True
            return len(buffer)
        if self._framer.done:
            self._end()
        return taken

    def _end(self) -> None:
        self._framer = None
        self._waiting.popleft()

    def _take_head(self) -> None:
        end = self._held.find(b"\r\n\r\n", max(self._searched - 3, 0), MAX_RESPONSE_HEAD)
        if end < 0:
            self._searched = len(self._held)
            self.lost = len(self._held) >= MAX_RESPONSE_HEAD
            return
        lines = bytes(self._held[:end]).split(b"\r\n")
        del self._held[: end + 4]
        self._searched = 0
        status = _STATUS_LINE.fullmatch(lines[0])
        if status is None or not self._waiting:
            self.lost = True  # not HTTP/1.x, or an answer that nobody asked for
            return
        self._start(int(status[1]), lines[1:])

    def _start(self, status: int, headers: list[bytes]) -> None:
        method, websocket = self._waiting[0]
        if status == 101:
            # Only the request last sent can have asked; anything else is out of step.
            self.switched = websocket and len(self._waiting) == 1
            self.lost = not self.switched
            return
        if 100 <= status < 200:
            return
        if method == "HEAD" or status in (204, 304):
            self._end()
            return
        length = _body_length(headers)
        if length is None:
            self.lost = True
            return
        self._framer = BodyFramer(length)
        if self._framer.done:
            self._end()


def _body_length(headers: list[bytes]) -> int | None:
    """Length of a response's body, CHUNKED, or None where only the end of connection tells."""
    lengths: set[bytes] = set()
    codings: list[bytes] = []
    for line in headers:
        key, colon, value = line.partition(b":")
        if not colon or key != key.strip():
            return None
        key = key.lower()
        if key == b"content-length":
            lengths.add(value.strip())
        elif key == b"transfer-encoding":
            codings.append(value.strip().lower())
    if codings:
        return CHUNKED if codings == [b"chunked"] and not lengths else None
    if len(lengths) != 1:
        return None
    length = lengths.pop()
    return int(length) if _LENGTH.fullmatch(length) else None
