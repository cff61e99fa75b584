"""What a sandbox used over its life, in bounded memory. Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from statistics import fmean

from sandgate.runtime.protocol import Usage

CAPACITY = 1024
"""Most samples that are kept of a sandbox: 85 minutes of one every 5 seconds at full resolution."""
_PACKED = struct.Struct("<dfQQQQ")
_LEAST_WEIGHT = 0.001
"""Seconds; of samples at the same moment."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a sandbox used at one moment. Sizes in bytes."""

    at: float
    """Seconds since 1970."""
    cpu_pct: float
    """0 to 100, of the processors it may use, since the sample before."""
    memory: int
    cache: int
    disk: int
    disk_size: int


class History:
    """Samples in the order of time. When there are too many, the older half gets coarser.

    It is divided into equal times, of each of which one sample stays: with the last moment, the
    mean processor load and the highest of the sizes. So all of a sandbox's life is covered,
    however long it is.
    """

    def __init__(self, packed: bytes = b"") -> None:
        """`packed`: what :meth:`pack` gave. Raises struct.error if it is something else."""
        self._samples = bytearray(packed)
        _check(self._samples)

    def __len__(self) -> int:
        return len(self._samples) // _PACKED.size

    def add(self, sample: Sample) -> None:
        """Add what is later than all before."""
        if len(self) >= CAPACITY:
            self._coarsen()
        self._samples += _pack(sample)

    def between(self, start: int | None, end: int | None) -> list[Sample]:
        """The samples from second `start` to second `end`, both included; None: no bound."""
        samples = (Sample(*fields) for fields in _PACKED.iter_unpack(self._samples))
        return [
            sample
            for sample in samples
            if (start is None or int(sample.at) >= start) and (end is None or int(sample.at) <= end)
        ]

    def last(self) -> Sample | None:
        """The latest, if there is any."""
        if not self._samples:
            return None
        return Sample(*_PACKED.unpack_from(self._samples, len(self._samples) - _PACKED.size))

    def pack(self) -> bytes:
        """All of it, to make the same history of."""
        return bytes(self._samples)

    def _coarsen(self) -> None:
        half = CAPACITY // 2
        size = half * _PACKED.size
        older = [Sample(*fields) for fields in _PACKED.iter_unpack(self._samples[:size])]
        first = older[0].at
        step = (older[-1].at - first) / (half // 2)
        parts: dict[int, list[tuple[Sample, float]]] = {}
        before = first
        for sample in older:
            part = int((sample.at - first) / step) if step > 0 else 0
            weight = max(_LEAST_WEIGHT, min(sample.at - before, step))
            parts.setdefault(part, []).append((sample, weight))
            before = sample.at
        self._samples[:size] = b"".join(_pack(_merge(part)) for part in parts.values())


class Meter:
    """Turns what is read of a sandbox into the samples of its history."""

    def __init__(self, cpu_count: int, history: History | None = None) -> None:
        self.history = History() if history is None else history
        self._cpu_count = cpu_count
        self._last: tuple[float, int] | None = None
        """Monotonic seconds and the processor time until then."""

    def read(self, usage: Usage, *, moment: float, wall: float) -> None:
        """Add a sample, but for the first reading of all, from which the load is counted.

        `moment` is monotonic, `wall` since 1970; both in seconds.
        """
        last, self._last = self._last, (moment, usage.cpu_ns)
        if last is None or moment <= last[0]:
            return
        # The wall clock may be set back; samples stay in the order of time.
        newest = self.history.last()
        at = wall if newest is None else max(wall, newest.at)
        load = (usage.cpu_ns - last[1]) / ((moment - last[0]) * 1e9 * self._cpu_count)
        self.history.add(
            Sample(
                at=at,
                cpu_pct=100 * min(1.0, max(0.0, load)),
                memory=usage.memory,
                cache=usage.cache,
                disk=usage.disk,
                disk_size=usage.disk_size,
            )
        )

    def rest(self) -> None:
        """Nothing is read for a while: the next reading is again one to count from."""
        self._last = None


def _merge(part: list[tuple[Sample, float]]) -> Sample:
    """One sample for several with their weights."""
    samples = [sample for sample, _ in part]
    return Sample(
        at=samples[-1].at,
        cpu_pct=fmean([sample.cpu_pct for sample in samples], [weight for _, weight in part]),
        memory=max(sample.memory for sample in samples),
        cache=max(sample.cache for sample in samples),
        disk=max(sample.disk for sample in samples),
        disk_size=samples[-1].disk_size,
    )


def _pack(sample: Sample) -> bytes:
    return _PACKED.pack(
        sample.at, sample.cpu_pct, sample.memory, sample.cache, sample.disk, sample.disk_size
    )


def _check(packed: bytearray) -> None:
    _PACKED.iter_unpack(packed)
