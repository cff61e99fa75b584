"""Measures the sandboxes that run, and writes down what is known of their past."""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Iterable, Mapping

from sandgate.node.journal import Journal, Level
from sandgate.node.metrics import History, Meter
from sandgate.node.ports import Launcher
from sandgate.node.sandbox import LiveSandbox
from sandgate.node.states import ALIVE, State
from sandgate.runtime.client import LauncherError
from sandgate.store import NoteKind, Store, StoreError

PERIOD = 5.0
"""Seconds from one sample to the next."""
_SAVE_AFTER = 12
"""Samples that a crash of this process may lose."""
_AT_ONCE = 32
"""Sandboxes that the launcher, which does nothing else meanwhile, is asked about at a time."""

_log = logging.getLogger(__name__)


class Observer:
    """Keeps the past of sandboxes: samples and journal. Belongs to one event loop."""

    def __init__(
        self,
        launcher: Launcher,
        store: Store,
        sandboxes: Callable[[], Iterable[LiveSandbox]],
        *,
        period: float = PERIOD,
    ) -> None:
        """`sandboxes` gives all that are alive."""
        self._launcher = launcher
        self._store = store
        self._sandboxes = sandboxes
        self._period = period
        self._unsaved: dict[str, int] = {}
        """Samples since the last time, by sandbox."""

    def restore(self, sandboxes: Mapping[str, LiveSandbox]) -> None:
        """Give sandboxes back what an earlier process wrote down. Raises StoreError."""
        for name, note in self._store.notes(NoteKind.METRICS).items():
            if (sandbox := sandboxes.get(name)) is not None:
                try:
                    sandbox.meter = Meter(sandbox.record.cpu_count, History(note.data))
                except struct.error as error:
                    _log.error("sandbox %s: its metrics are damaged: %s", name, error)
        for name, note in self._store.notes(NoteKind.JOURNAL).items():
            if (sandbox := sandboxes.get(name)) is not None:
                try:
                    sandbox.journal = Journal.unpack(note.data)
                except (ValueError, TypeError) as error:
                    _log.error("sandbox %s: its journal is damaged: %s", name, error)
        for sandbox in sandboxes.values():
            sandbox.journal.add("The node's control process started again", Level.DEBUG)

    async def run(self) -> None:
        """Observe until cancelled."""
        while True:
            await asyncio.sleep(self._period - time.monotonic() % self._period)
            try:
                await self._measure()
            except LauncherError as error:
                _log.warning("sandboxes were not measured: %s", error)
            self.save(after=_SAVE_AFTER)

    def save(self, after: int = 1) -> None:
        """Write down the journals that changed, and histories with `after` new samples or more."""
        sandboxes = {item.sandbox_id: item for item in self._sandboxes() if _has_row(item)}
        due = [name for name, count in self._unsaved.items() if count >= after]
        histories = {
            name: sandboxes[name].meter.history.pack() for name in due if name in sandboxes
        }
        changed = {name: item for name, item in sandboxes.items() if item.journal.changed}
        journals = {name: item.journal.pack() for name, item in changed.items()}
        try:
            self._store.write_notes(NoteKind.METRICS, histories)
            self._store.write_notes(NoteKind.JOURNAL, journals)
        except StoreError as error:
            _log.error("the past of sandboxes was not written down: %s", error)
        for name in [*due, *(self._unsaved.keys() - sandboxes.keys())]:
            self._unsaved.pop(name, None)

    async def _measure(self) -> None:
        running = {}
        for sandbox in self._sandboxes():
            if sandbox.state is State.RUNNING:
                running[sandbox.sandbox_id] = sandbox
            else:
                sandbox.meter.rest()
        names = list(running)
        for start in range(0, len(names), _AT_ONCE):
            usages = await self._launcher.usage(names[start : start + _AT_ONCE])
            moment, wall = time.monotonic(), time.time()
            for name, usage in usages.items():
                running[name].meter.read(usage, moment=moment, wall=wall)
                self._unsaved[name] = self._unsaved.get(name, 0) + 1


def _has_row(sandbox: LiveSandbox) -> bool:
    """Without one, the notes would outlive the sandbox."""
    return sandbox.state in ALIVE
