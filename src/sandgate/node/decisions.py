"""Where all decisions of a node come together: kept, counted, and told to those who watch."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sandgate.decisions.tally import Subject, Sum, Tally
from sandgate.decisions.wire import Batch, decode
from sandgate.inbox import Inbox
from sandgate.store import StoreError
from sandgate.store.decisions import (
    ROWS,
    ROWS_PER_SANDBOX,
    DecisionQuery,
    DecisionStore,
    Logged,
    Recorded,
)

SAVE_SECONDS = 1.0
"""From one writing to the next: what a crash of this process may lose."""
EXPIRE_SECONDS = 3600.0
UNTOLD_SECONDS = 5.0
"""From one look at what the kernel refused without telling of it to the next."""

MAX_TAILS = 256
"""Most readers at once that are told live."""
MAX_QUEUE = 1000
"""Sums that wait for one reader; a reader that is slower is told how many it missed."""

_AT_ONCE = 64
_RECEIVE = 1 << 20
_BUFFER = 4 << 20

_Untold = Callable[[], Awaitable[Mapping[str, int] | None]]
_T = TypeVar("_T")

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Tail:
    """One reader's queue."""

    sandbox_id: str
    waiting: deque[tuple[Subject, Sum]] = field(default_factory=deque)
    missed: int = 0
    """Sums that found the queue full since the last :meth:`take`."""
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, subject: Subject, amount: Sum) -> bool:
        """Tell the reader, unless it has fallen behind: False then."""
        self._news.set()
        if len(self.waiting) >= MAX_QUEUE:
            self.missed += 1
            return False
        self.waiting.append((subject, amount))
        return True

    async def take(self, seconds: float) -> tuple[list[tuple[Subject, Sum]], int]:
        """What has come, and how much was missed before the next; waits up to `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
        self._news.clear()
        found, missed = list(self.waiting), self.missed
        self.waiting.clear()
        self.missed = 0
        return found, missed


@dataclass(slots=True)
class Totals:
    """What has been counted since this process started."""

    decisions: Counter[tuple[bool, str]] = field(default_factory=Counter)
    """By whether it was allowed, and the reason."""
    reported: int = 0
    """Of them: what passed because of report mode."""
    sent: int = 0
    received: int = 0
    dns_queries: int = 0
    unrecorded: int = 0
    """Decisions of which nothing but their number is known."""
    malformed: int = 0
    missed: int = 0
    """Sums that live readers were too slow for."""
    unsaved: int = 0
    """Sums that could not be written down."""
    gauges: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """By process: what it said last of itself."""

    def add(self, batch: Batch) -> None:
        """Count what a process told."""
        for subject, amount in batch.sums:
            self.decisions[subject.allowed, subject.reason] += amount.count
            self.sent += amount.sent
            self.received += amount.received
            self.reported += amount.count if subject.reported else 0
            self.dns_queries += amount.count if subject.protocol == "dns" else 0
        self.unrecorded += sum(batch.unrecorded.values())
        if batch.gauges:
            self.gauges[batch.source] = batch.gauges


class DecisionHub:
    """Belongs to one event loop."""

    def __init__(
        self,
        listener: socket.socket,
        store: DecisionStore,
        owner_of: Callable[[str], str | None],
        untold: _Untold | None = None,
    ) -> None:
        """`listener`: the bound datagram socket that the other processes send to. `owner_of` says
        whose sandbox it is that has an id; None if there is none. `untold` asks
        how many refusals of each sandbox the kernel has counted and not told of; None: not now."""
        self.totals = Totals()
        self._listener = listener
        self._store = store
        self._owner_of = owner_of
        self._owners: dict[str, str] = {}
        """Of sandboxes in the tally."""
        self._untold = untold
        self._seen_untold: Mapping[str, int] = {}
        self._inbox = Inbox(_RECEIVE)
        self._tally = Tally(ROWS_PER_SANDBOX)
        self._tails: dict[str, set[Tail]] = {}
        self._thread = ThreadPoolExecutor(1, "decisions")
        self._saving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def start(self) -> None:
        """Listen, and write down what comes."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.fileno(), self._read)
        work = [self._every(SAVE_SECONDS, self.save), self._every(EXPIRE_SECONDS, self._expire)]
        if self._untold is not None:
            work.append(self._every(UNTOLD_SECONDS, self._ask_untold))
        self._tasks = [loop.create_task(item) for item in work]

    async def close(self) -> None:
        """Write down what is left, and stop."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._read()
        self._listener.close()
        await self.save()
        self._thread.shutdown()
        self._store.close()

    @property
    def tails(self) -> int:
        """How many readers there are, of whom no more than :data:`MAX_TAILS` should be."""
        return sum(map(len, self._tails.values()))

    def watch(self, sandbox_id: str) -> Tail:
        """A queue of what is decided for a sandbox from now on; ends by :meth:`unwatch`."""
        tail = Tail(sandbox_id)
        self._tails.setdefault(sandbox_id, set()).add(tail)
        return tail

    def unwatch(self, tail: Tail) -> None:
        """End a reader."""
        tails = self._tails.get(tail.sandbox_id, set())
        tails.discard(tail)
        if not tails:
            self._tails.pop(tail.sandbox_id, None)

    async def find(self, query: DecisionQuery) -> tuple[list[Recorded], Logged | None]:
        """Rows of a sandbox, and what is known beside. Raises StoreError."""
        await self.save()
        rows = await self._in_thread(lambda: self._store.find(query))
        return rows, await self._in_thread(lambda: self._store.about(query.sandbox_id))

    async def about(self, sandbox_id: str) -> Logged | None:
        """What is known of a sandbox, if anything. Raises StoreError."""
        await self.save()
        return await self._in_thread(lambda: self._store.about(sandbox_id))

    async def save(self) -> None:
        """Write down what has come."""
        async with self._saving:
            if not self._tally:
                return
            sums, unrecorded = self._tally.take(ROWS)
            owners, self._owners = self._owners, {}
            try:
                await self._in_thread(
                    lambda: self._store.add(sums, unrecorded, owners, time.time())
                )
            except StoreError as error:
                self.totals.unsaved += len(sums)
                _log.error("%s", error)

    def receive(self, batch: Batch) -> None:
        """Take in what a process told."""
        self.totals.add(batch)
        for subject, amount in batch.sums:
            if not subject.sandbox_id:
                continue
            self._note_owner(subject.sandbox_id)
            for tail in self._tails.get(subject.sandbox_id, ()):
                self.totals.missed += not tail.put(subject, amount)
            self._tally.add(
                subject,
                Sum(
                    amount.first,
                    amount.last,
                    amount.count,
                    amount.sent,
                    amount.received,
                    amount.milliseconds,
                ),
            )
        for sandbox_id, count in batch.unrecorded.items():
            if sandbox_id:
                self._note_owner(sandbox_id)
                self._tally.miss(sandbox_id, count)

    def _note_owner(self, sandbox_id: str) -> None:
        """As long as the sandbox is there: its log outlives it."""
        if sandbox_id not in self._owners and (owner := self._owner_of(sandbox_id)) is not None:
            self._owners[sandbox_id] = owner

    def _read(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                datagram = self._inbox.receive(self._listener)
            except BlockingIOError:
                return
            try:
                self.receive(decode(datagram))
            except ValueError as error:
                self.totals.malformed += 1
                _log.error("%s", error)

    async def _ask_untold(self) -> None:
        assert self._untold is not None
        counted = await self._untold()
        if counted is None:
            return
        # The kernel begins a new count for a sandbox that was quiet for a minute.
        before = self._seen_untold
        news = {
            name: count - before.get(name, 0) if count >= before.get(name, 0) else count
            for name, count in counted.items()
        }
        self._seen_untold = counted
        self.receive(Batch("launcher", unrecorded=news))

    async def _expire(self) -> None:
        try:
            await self._in_thread(lambda: self._store.expire(time.time()))
        except StoreError as error:
            _log.error("%s", error)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @staticmethod
    async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            await work()
