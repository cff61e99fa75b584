"""Sends decisions to the control process, without ever waiting for it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from sandgate.decisions.tally import Subject, Sum, Tally
from sandgate.decisions.wire import MAX_DATAGRAM, Batch, encode

PERIOD = 0.1
"""Seconds for which decisions are added up before they are sent."""
_AT_ONCE = 200
"""Sums that are sent in a period, which bounds what the control process has to do; more wait."""
_GAUGES_EVERY = 10
"""Periods from one report of gauges to the next."""


class Feed:
    """Collects and sends. While nobody listens, decisions wait in a :class:`Tally`, which is
    bounded. Belongs to one event loop."""

    def __init__(
        self, source: str, path: Path, gauges: Callable[[], Mapping[str, int]] = dict
    ) -> None:
        """`path`: the datagram socket of the control process."""
        self._source = source
        self._path = str(path)
        self._gauges = gauges
        self._tally = Tally()
        self._unsent: list[bytes] = []
        self._periods = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_DATAGRAM)

    def begin(self, subject: Subject) -> None:
        """Count a decision at this moment; what comes of it is told by :meth:`end`."""
        now = time.time()
        self._tally.add(subject, Sum(now, now))

    def end(
        self, subject: Subject, sent: int, received: int, milliseconds: int, *, counted: bool
    ) -> None:
        """Add what came of a decision, and the decision too unless it was `counted` before."""
        now = time.time()
        self._tally.add(subject, Sum(now, now, 0 if counted else 1, sent, received, milliseconds))

    def miss(self, sandbox_id: str, count: int) -> None:
        """Count decisions of which nothing else is known."""
        self._tally.miss(sandbox_id, count)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await asyncio.sleep(PERIOD)
            self.flush()

    def flush(self) -> None:
        """Send what can be sent now."""
        self._periods += 1
        if not self._unsent:
            report = self._periods % _GAUGES_EVERY == 0
            if not self._tally and not report:
                return
            sums, unrecorded = self._tally.take(_AT_ONCE)
            gauges = self._gauges() if report else {}
            self._unsent = list(encode(Batch(self._source, sums, unrecorded, gauges)))
        try:
            while self._unsent:
                self._socket.sendto(self._unsent[0], self._path)
                del self._unsent[0]
        except OSError:
            pass  # nobody listens, or not fast enough: kept for the next time

    def close(self) -> None:
        """Send what can be sent, and close."""
        self.flush()
        self._socket.close()
