"""Sets of IPv4 ranges. Pure."""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

_LENGTHS = {str(length): length for length in range(33)}
_ADDRESS_BITS = 32


def parse_range(text: str) -> tuple[int, int] | None:
    """First and last address of `a.b.c.d` or `a.b.c.d/n`, host bits cleared.

    None for everything else; several times as fast as :class:`ipaddress.IPv4Network`.
    """
    address, slash, suffix = text.partition("/")
    length = _LENGTHS.get(suffix) if slash else _ADDRESS_BITS
    if length is None:
        return None
    try:
        first = int.from_bytes(socket.inet_pton(socket.AF_INET, address))
    except (OSError, ValueError):  # ValueError: a NUL in it, or no ASCII
        return None
    rest = (1 << _ADDRESS_BITS - length) - 1
    return first & ~rest, first | rest


class NetworkSet:
    """A set of IPv4 ranges with a logarithmic look-up. Immutable."""

    __slots__ = ("_ends", "_networks", "_starts")

    def __init__(self, networks: Iterable[IPv4Network] = ()) -> None:
        self._fill((int(item.network_address), int(item.broadcast_address)) for item in networks)

    @classmethod
    def of_ranges(cls, ranges: Iterable[tuple[int, int]]) -> NetworkSet:
        """Of first and last addresses, each pair a CIDR range (see :func:`parse_range`)."""
        made = cls.__new__(cls)
        made._fill(ranges)
        return made

    @classmethod
    def parse(cls, texts: Iterable[str]) -> NetworkSet:
        """Of what :meth:`texts` gave. Raises ValueError."""

        def ranges() -> Iterator[tuple[int, int]]:
            for text in texts:
                found = parse_range(text)
                if found is None:
                    raise ValueError(f"{text[:100]!r} is no IPv4 address or range")
                yield found

        return cls.of_ranges(ranges())

    def _fill(self, ranges: Iterable[tuple[int, int]]) -> None:
        collapsed = _collapse(ranges)
        self._starts = [first for first, _ in collapsed]
        self._ends = [last for _, last in collapsed]
        self._networks: dict[int, IPv4Network] = {}
        """Those that were asked for: making all of a long list takes milliseconds."""

    @property
    def networks(self) -> tuple[IPv4Network, ...]:
        """The ranges, collapsed: sorted, disjoint, none a part of another."""
        return tuple(self._network(index) for index in range(len(self._starts)))

    @property
    def ranges(self) -> Iterator[tuple[int, int]]:
        """The same as first and last addresses."""
        return zip(self._starts, self._ends, strict=True)

    def texts(self) -> list[str]:
        """The same in CIDR notation."""
        return [
            f"{socket.inet_ntoa(first.to_bytes(4))}/{_length(first, last)}"
            for first, last in self.ranges
        ]

    def find(self, address: IPv4Address) -> IPv4Network | None:
        """The range that holds `address`, if any."""
        value = int(address)
        index = bisect_right(self._starts, value) - 1
        if index >= 0 and value <= self._ends[index]:
            return self._network(index)
        return None

    def _network(self, index: int) -> IPv4Network:
        network = self._networks.get(index)
        if network is None:
            first = self._starts[index]
            network = IPv4Network((first, _length(first, self._ends[index])))
            self._networks[index] = network
        return network

    def __contains__(self, address: IPv4Address) -> bool:
        return self.find(address) is not None

    def __bool__(self) -> bool:
        return bool(self._starts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NetworkSet):
            return NotImplemented
        return self._starts == other._starts and self._ends == other._ends

    def __hash__(self) -> int:
        return hash((tuple(self._starts), tuple(self._ends)))

    def __repr__(self) -> str:
        return f"NetworkSet({self.texts()})"


def _length(first: int, last: int) -> int:
    return _ADDRESS_BITS - (last - first).bit_length()


def _collapse(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """CIDR ranges in ascending order, without those that others hold, and with halves made one."""
    result: list[tuple[int, int]] = []
    for first, last in sorted(ranges, key=lambda item: (item[0], -item[1])):
        if result and last <= result[-1][1]:
            continue
        # Two CIDR ranges either nest or are apart; halves are of one size and the first is even.
        while result:
            before, end = result[-1]
            size = last - first + 1
            if end + 1 != first or first - before != size or before & (2 * size - 1):
                break
            result.pop()
            first = before
        result.append((first, last))
    return result
