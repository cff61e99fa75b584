"""A day of a node's life, as its clients see it: runs in the client's process."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

from e2b import ALL_TRAFFIC, Sandbox
from e2b.sandbox_sync.commands.command_handle import CommandHandle

_HOUR = 3600
_FETCH = "for host in google.com 1.1.1.1; do curl -s -o /dev/null -m 3 http://$host/; done; true"
_TICK = "while :; do date; sleep 1; done"
_PATIENCE = 60.0


class Day:
    """Sandboxes that end by their time, that are paused by it and resumed, and that are kept.

    Times that the node is given are by its clock, which is faster than this process'. Calls may
    fail, since the node's patience is as much shorter; what counts is what is left at the end.
    """

    def __init__(self) -> None:
        self._over = threading.Event()
        self._counts: Counter[str] = Counter()
        self._broken: list[str] = []

    def run(self, seconds: float) -> dict[str, int]:
        """How often what was done. Raises AssertionError if a sandbox that was kept is lost."""
        jobs: list[Callable[[], Any]] = [
            self._keep,
            lambda: self._again(self._expire),
            lambda: self._again(lambda: self._pause("full")),
            lambda: self._again(lambda: self._pause("filesystem")),
        ]
        threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        self._over.set()
        for thread in threads:
            thread.join(2 * _PATIENCE)
        assert not self._broken, self._broken
        self._end_all()
        return dict(self._counts)

    def _again(self, work: Callable[[], None]) -> None:
        while not self._over.is_set():
            try:
                work()
            except Exception:  # the node's patience was over, or a time had come
                self._counts["failed"] += 1
            self._over.wait(0.5)

    def _expire(self) -> None:
        network = {"allow_out": ["google.com"], "deny_out": [ALL_TRAFFIC]}
        sandbox = Sandbox.create(timeout=_HOUR // 2, network=network)  # type: ignore[arg-type]  # the SDK's own examples
        sandbox.commands.run(_FETCH, timeout=0)
        self._counts["left to its time"] += 1

    def _pause(self, mode: Literal["full", "filesystem"]) -> None:
        sandbox = Sandbox.create(
            timeout=_HOUR // 10, lifecycle={"on_timeout": {"action": "pause", "mode": mode}}
        )
        until = time.monotonic() + _PATIENCE
        while "paused" not in str(sandbox.get_info().state).lower():
            if time.monotonic() > until:
                self._broken.append(f"{sandbox.sandbox_id} was not paused ({mode})")
                return
            time.sleep(0.2)
        sandbox.connect(timeout=10 * _HOUR)
        self._counts[f"paused by its time ({mode})"] += 1
        sandbox.kill()

    def _keep(self) -> None:
        """One with a stream open all day long."""
        sandbox, stream = self._ticking()
        lines: list[str] = []

        def follow() -> None:
            try:
                stream.wait(on_stdout=lines.append)
            except Exception as error:  # every kind of end is one to tell
                if not self._over.is_set():
                    self._broken.append(f"the stream broke off: {error}")

        threading.Thread(target=follow, daemon=True).start()
        while not self._over.wait(2):
            try:
                sandbox.set_timeout(10 * _HOUR)
                self._counts["kept"] += 1
            except Exception:  # tried again, long before its time
                self._counts["failed"] += 1
        self._counts["lines of the stream"] = len(lines)

    def _ticking(self) -> tuple[Sandbox, CommandHandle]:
        while True:
            try:
                sandbox = Sandbox.create(timeout=10 * _HOUR)
                return sandbox, sandbox.commands.run(_TICK, background=True, timeout=0)
            except Exception:  # tried again
                self._counts["failed"] += 1
                time.sleep(0.5)

    def _end_all(self) -> None:
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                left = Sandbox.list().next_items()
                for info in left:
                    Sandbox.kill(info.sandbox_id)
            except Exception:  # tried again
                left = []
                time.sleep(0.1)
            else:
                if not left:
                    return
