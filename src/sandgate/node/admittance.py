"""Lets creates in, one by one: node, owner and machine must have room."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sandgate.accounts import Caller
from sandgate.node.admission import Readings, needs, shortage
from sandgate.node.errors import LimitReached, NoSpace
from sandgate.node.ports import Gauge
from sandgate.node.registry import Registry
from sandgate.settings import Settings

FRESH_SECONDS = 0.25
"""How old readings of the machine may be."""
BUSY_SECONDS, SHORT_SECONDS = 1, 5
"""When to ask again: while many are started, and when the machine is short of something."""


@dataclass(slots=True)
class _Bucket:
    """What is left of an owner's rate."""

    tokens: float
    at: float
    """Monotonic seconds at which `tokens` was right."""


class Admittance:
    """Refuses what there is no room for, before anything is made. Belongs to one event loop."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        gauge: Gauge,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._gauge = gauge
        self._clock = clock
        self._needs = needs(settings)
        self._readings = Readings()
        self._read_at = -math.inf
        self._unseen = 0
        """Sandboxes admitted since then."""
        self._starting = 0
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, caller: Caller) -> None:
        """Raises LimitReached or NoSpace if `caller` may not have one more sandbox now."""
        settings, live = self._settings, self._registry.live
        if self._starting >= settings.max_creates_at_once:
            raise LimitReached(
                f"{self._starting} sandboxes are being started (max_creates_at_once); "
                f"try again in {BUSY_SECONDS} s",
                retry_after=BUSY_SECONDS,
                repeat=True,
            )
        if len(live) >= settings.max_sandboxes:
            raise LimitReached(
                f"this node's limit of {settings.max_sandboxes} sandboxes (max_sandboxes) is "
                "reached; end some, or raise the limit"
            )
        self._require_quota(caller)
        self.require_room()
        self._take_token(caller)
        self._unseen += 1

    def require_room(self, extra_disk_mb: int = 0) -> None:
        """Raises LimitReached or NoSpace if the machine is short of something.

        `extra_disk_mb`: MiB that are about to be copied within `data_dir`.
        """
        now = self._clock()
        if now - self._read_at >= FRESH_SECONDS:
            self._readings = self._gauge.read(len(self._registry.live))
            self._read_at, self._unseen = now, self._starting
        found = shortage(
            self._readings, self._needs, unseen=self._unseen, extra_disk_mb=extra_disk_mb
        )
        if found is not None:
            if found.storage:
                raise NoSpace(f"the node has no room: {found.reason}")
            raise LimitReached(f"the node has no room: {found.reason}", retry_after=SHORT_SECONDS)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """While a sandbox that was admitted is being started."""
        self._starting += 1
        try:
            yield
        finally:
            self._starting -= 1

    def _require_quota(self, caller: Caller) -> None:
        quota = caller.quota
        if quota.max_sandboxes is None and quota.memory_mb is None:
            return
        own = [item for item in self._registry.live.values() if item.record.owner == caller.owner]
        if quota.max_sandboxes is not None and len(own) >= quota.max_sandboxes:
            raise LimitReached(
                f"your quota of {quota.max_sandboxes} sandboxes at once is reached; end some, or "
                "ask the node's operator for more"
            )
        memory = self._settings.memory_mb + sum(item.record.memory_mb for item in own)
        if quota.memory_mb is not None and memory > quota.memory_mb:
            raise LimitReached(
                f"your sandboxes would have {memory} MiB of memory together, and your quota is "
                f"{quota.memory_mb} MiB; end some, or ask the node's operator for more"
            )

    def _take_token(self, caller: Caller) -> None:
        rate = caller.quota.creates_per_second
        if rate is None:
            self._buckets.pop(caller.owner, None)
            return
        now, most = self._clock(), max(1.0, rate)
        bucket = self._buckets.setdefault(caller.owner, _Bucket(most, now))
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        if bucket.tokens < 1:
            seconds = math.ceil((1 - bucket.tokens) / rate)
            raise LimitReached(
                f"your quota of {rate:g} creates per second is used up; try again in {seconds} s",
                retry_after=seconds,
                repeat=True,
            )
        bucket.tokens -= 1
