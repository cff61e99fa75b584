"""Ranges of addresses as the kernel's sets hold them. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sandgate.policy import EgressPolicy, Mode, NetworkSet

Ranges = tuple[tuple[int, int], ...]
"""First and last address, as numbers; ascending, and none touches the next."""

ALL_ADDRESSES: Ranges = ((0, 0xFFFFFFFF),)


def reachable_ranges(policy: EgressPolicy) -> Ranges:
    """All addresses that pass by address: allowed, or not denied, or all if it only reports."""
    if policy.mode is Mode.REPORT:
        return ALL_ADDRESSES
    gaps = []
    start = 0
    for first, last in merged(policy.deny):
        if first > start:
            gaps.append((start, first - 1))
        start = last + 1
    if start <= 0xFFFFFFFF:
        gaps.append((start, 0xFFFFFFFF))
    return _joined(sorted([*gaps, *merged(policy.allow)]))


def merged(networks: NetworkSet) -> Ranges:
    """The networks as ranges; those that touch are one."""
    return _joined(networks.ranges)


def covers(wide: Ranges, narrow: Ranges) -> bool:
    """Is all of `narrow` a part of `wide`? Both ascending, and nothing in them touches."""
    candidates = iter(wide)
    current = next(candidates, None)
    for first, last in narrow:
        while current is not None and current[1] < last:
            current = next(candidates, None)
        if current is None or current[0] > first:
            return False
    return True


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ascending ranges, with those that overlap or touch made one."""
    result: list[tuple[int, int]] = []
    for first, last in ranges:
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(last, result[-1][1]))
        else:
            result.append((first, last))
    return tuple(result)
