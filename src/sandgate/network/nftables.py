"""Tables, chains, sets and maps of nftables, and the all-or-nothing transactions that change them
(linux/netfilter/nf_tables.h, nfnetlink.h)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from sandgate.network import nft_numbers as nft
from sandgate.network.netlink import (
    MAX_ATTRIBUTE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    Message,
    NetlinkSocket,
    attribute,
    nested,
    text,
)
from sandgate.network.ranges import Ranges
from sandgate.network.statements import Rule, show

NETLINK_NETFILTER = 12

_NEW = NLM_F_CREATE | NLM_F_EXCL
"""One that is there already is refused: it would be taken for the new one, with what it holds."""

MOST_INTERFACES = 65_535
"""More than there are sandboxes."""
_METER_SECONDS = 60
"""How long the bucket of an interface is kept that nothing came from."""

OWNED = 2 | 4
"""Table flags: only the socket that made it changes it, and it outlives that socket (Linux 6.9)."""


class Hook(Enum):
    """Where a base chain is attached: words, hook number, chain type, priority."""

    RAW_PREROUTING = ("prerouting", 0, "filter", -300)
    RAW_OUTPUT = ("output", 3, "filter", -300)
    PREROUTING = ("prerouting", 0, "filter", -150)
    INPUT = ("input", 1, "filter", 0)
    FORWARD = ("forward", 2, "filter", 0)
    OUTPUT = ("output", 3, "filter", 0)
    DNAT = ("prerouting", 0, "nat", -100)
    SNAT = ("postrouting", 4, "nat", 100)

    def __init__(self, hook: str, number: int, type_: str, priority: int) -> None:
        self.hook = hook
        self.number = number
        self.type = type_
        self.priority = priority


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain; with a hook, a base chain whose policy is accept."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


class Kind(Enum):
    """What a named set holds: the key's type for `nft`, its bytes, and the set's flags."""

    RANGES = (nft.TYPE_IPADDR, 4, nft.SET_F_INTERVAL)
    ADDRESSES = (nft.TYPE_IPADDR, 4, 0)
    LINKS = (nft.TYPE_IFNAME << nft.TYPE_BITS | nft.TYPE_IPADDR, 20, 0)
    """Interface name and address."""
    PORTS_OF = (nft.TYPE_IPADDR << nft.TYPE_BITS | nft.TYPE_PORT, 8, 0)
    """Address and port, which fills four bytes."""
    PAIRS = (nft.TYPE_IPADDR << nft.TYPE_BITS | nft.TYPE_IPADDR, 8, 0)
    """Two addresses."""
    VERDICTS = (nft.TYPE_IPADDR, 4, nft.SET_F_MAP)
    """A map from an address to a verdict."""
    METER = (nft.TYPE_IFNAME, 16, nft.SET_F_TIMEOUT | nft.SET_F_EVAL)
    """Buckets by interface, which rules make as packets come."""
    COUNTS = (nft.TYPE_IFNAME, 16, nft.SET_F_EVAL)
    """Connections by interface, which rules count as packets come."""

    def __init__(self, key_type: int, key_length: int, flags: int) -> None:
        self.key_type = key_type
        self.key_length = key_length
        self.flags = flags


@dataclass(frozen=True, slots=True)
class NamedSet:
    """A set or map, by name."""

    name: str
    kind: Kind
    size: int = MOST_INTERFACES
    """Most elements that packets make, where they do (METER, COUNTS)."""


@dataclass(frozen=True, slots=True)
class RangeSet:
    """A set with its content: ranges of addresses, both ends included, ascending, not touching."""

    name: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set; of a map, with the verdict (`actions.verdict_data`)."""

    set: NamedSet
    key: bytes
    verdict: bytes = b""


@dataclass(frozen=True, slots=True)
class TcpTimeouts:
    """Seconds after which connection tracking forgets a TCP connection, by its state."""

    name: str
    seconds: Mapping[str, int]


class Table:
    """Builds the messages that create and change one table of the `inet` family."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._set_ids = itertools.count(1)

    def create(self, *, flags: int = 0, comment: str | None = None) -> Message:
        """Create the table, or do nothing if it exists."""
        body = text(nft.TABLE_NAME, self.name)
        if flags:
            body += attribute(nft.TABLE_FLAGS, _u32(flags))
        if comment is not None:
            value = comment.encode() + b"\0"
            body += attribute(nft.TABLE_USERDATA, bytes((nft.COMMENT, len(value))) + value)
        return self._message(nft.NEWTABLE, NLM_F_CREATE, body, f"create table {self.name}")

    def delete(self) -> Message:
        """Delete the table with all that is in it."""
        return self._message(
            nft.DELTABLE, 0, text(nft.TABLE_NAME, self.name), f"delete {self.name}"
        )

    def create_chain(self, chain: Chain) -> Message:
        """Create the chain, without its rules (they may refer to chains created later).

        There must be none of its name.
        """
        body = text(nft.CHAIN_TABLE, self.name) + text(nft.CHAIN_NAME, chain.name)
        if chain.hook is not None:
            body += (
                nested(
                    nft.CHAIN_HOOK,
                    attribute(1, _u32(chain.hook.number)),
                    attribute(2, _u32(chain.hook.priority)),
                )
                + attribute(nft.CHAIN_POLICY, _u32(1))
                + text(nft.CHAIN_TYPE, chain.hook.type)
            )
        return self._message(nft.NEWCHAIN, _NEW, body, f"create chain {chain.name}")

    def delete_chain(self, name: str) -> Message:
        """Delete the chain and its rules."""
        body = text(nft.CHAIN_TABLE, self.name) + text(nft.CHAIN_NAME, name)
        return self._message(nft.DELCHAIN, 0, body, f"delete chain {name}")

    def add_rules(self, chain: Chain, after: int = 0) -> Iterator[Message]:
        """Append the chain's rules to it, without the first ones, which it has."""
        start = text(nft.RULE_TABLE, self.name) + text(nft.RULE_CHAIN, chain.name)
        for rule in chain.rules[after:]:
            expressions = (statement.expressions for statement in rule)
            body = start + nested(nft.RULE_EXPRESSIONS, *expressions)
            what = f"add to chain {chain.name}: {show(rule)}"
            yield self._message(nft.NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, what)

    def flush_chain(self, name: str) -> Message:
        """Take all rules out of the chain."""
        body = text(nft.RULE_TABLE, self.name) + text(nft.RULE_CHAIN, name)
        return self._message(nft.DELRULE, 0, body, f"flush chain {name}")

    def create_set(self, named: NamedSet) -> Message:
        """Create an empty set or map. There must be none of its name."""
        kind = named.kind
        body = (
            text(nft.SET_TABLE, self.name)
            + text(nft.SET_NAME, named.name)
            + attribute(nft.SET_KEY_TYPE, _u32(kind.key_type))
            + attribute(nft.SET_KEY_LEN, _u32(kind.key_length))
            + attribute(nft.SET_FLAGS, _u32(kind.flags))
            + attribute(nft.SET_ID, _u32(next(self._set_ids) & 0x7FFFFFFF))
        )
        if kind is Kind.VERDICTS:
            body += attribute(nft.SET_DATA_TYPE, _u32(nft.DATA_VERDICT))
            body += attribute(nft.SET_DATA_LEN, _u32(0))
        if kind in (Kind.METER, Kind.COUNTS):
            body += nested(nft.SET_DESCRIPTION, attribute(1, _u32(named.size)))
        if kind is Kind.METER:
            body += attribute(nft.SET_TIMEOUT, (_METER_SECONDS * 1000).to_bytes(8))
        return self._message(nft.NEWSET, _NEW, body, f"create set {named.name}")

    def create_timeouts(self, timeouts: TcpTimeouts) -> Message:
        """Create the object that rules give connections their timeouts by."""
        seconds = (
            attribute(nft.TCP_STATES.index(state) + 1, _u32(value))
            for state, value in timeouts.seconds.items()
        )
        body = (
            text(nft.OBJECT_TABLE, self.name)
            + text(nft.OBJECT_NAME, timeouts.name)
            + attribute(nft.OBJECT_TYPE, _u32(nft.CT_TIMEOUT))
            + nested(
                nft.OBJECT_DATA,
                attribute(nft.TIMEOUT_L3PROTO, nft.IPV4_PROTOCOL.to_bytes(2)),
                attribute(nft.TIMEOUT_L4PROTO, bytes((nft.TCP,))),
                nested(nft.TIMEOUT_DATA, *seconds),
            )
        )
        return self._message(nft.NEWOBJECT, NLM_F_CREATE, body, f"create timeouts {timeouts.name}")

    def create_range_set(self, content: RangeSet) -> Iterator[Message]:
        """Create a set of ranges, in as many messages as its elements need."""
        yield self.create_set(NamedSet(content.name, Kind.RANGES))
        yield from self.add_ranges(content)

    def add_ranges(self, content: RangeSet) -> Iterator[Message]:
        """Add ranges to a set of ranges, in as many messages as they need."""
        yield from self._elements(nft.NEWSETELEM, content.name, _intervals(content.ranges))

    def empty_set(self, name: str) -> Message:
        """Delete all elements of a set."""
        body = text(nft.ELEM_TABLE, self.name) + text(nft.ELEM_SET, name)
        return self._message(nft.DELSETELEM, 0, body, f"empty set {name}")

    def delete_set(self, name: str) -> Message:
        """Delete a set or map."""
        body = text(nft.SET_TABLE, self.name) + text(nft.SET_NAME, name)
        return self._message(nft.DELSET, 0, body, f"delete set {name}")

    def add_element(self, element: Element) -> Iterator[Message]:
        """Add an element to its set."""
        data = nested(nft.ELEM_DATA, element.verdict) if element.verdict else b""
        encoded = _element(element.key, data)
        yield from self._elements(nft.NEWSETELEM, element.set.name, [encoded])

    def delete_element(self, element: Element) -> Iterator[Message]:
        """Delete an element from its set."""
        yield from self._elements(nft.DELSETELEM, element.set.name, [_element(element.key)])

    def _elements(self, kind: int, name: str, elements: Iterable[bytes]) -> Iterator[Message]:
        start = text(nft.ELEM_TABLE, self.name) + text(nft.ELEM_SET, name)
        flags = NLM_F_CREATE if kind == nft.NEWSETELEM else 0
        what = f"{'add' if flags else 'delete'} elements of {name}"
        for part in _split(elements):
            body = start + nested(nft.ELEM_ELEMENTS, part)
            yield self._message(kind, flags, body, what)

    def _message(self, kind: int, flags: int, body: bytes, what: str) -> Message:
        header = struct.pack(">BBH", nft.INET, 0, 0)
        return Message(nft.SUBSYSTEM | kind, flags, header + body, f"nftables: {what}")


def commit(socket: NetlinkSocket, messages: Sequence[Message]) -> None:
    """Apply all messages, or none. Raises :class:`~sandgate.network.netlink.NetlinkError`."""
    header = struct.pack(">BBH", 0, 0, nft.SUBSYSTEM >> 8)
    begin = Message(nft.BATCH_BEGIN, 0, header, "nftables: transaction")
    socket.transaction(begin, messages, Message(nft.BATCH_END, 0, header, "nftables: commit"))


def _u32(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _element(key: bytes, *more: bytes) -> bytes:
    return nested(1, nested(nft.ELEM_KEY, attribute(1, key)), *more)


def _intervals(ranges: Ranges) -> Iterator[bytes]:
    """Elements of an interval set: where each range begins, and the first address after it.

    A range that reaches 255.255.255.255 has no end element.
    """
    flag = attribute(nft.ELEM_FLAGS, _u32(nft.ELEM_INTERVAL_END))
    # The same element but for its key, which is where the zeros are: faster than encoding each.
    before_start = _element(bytes(4))[:-4]
    template = _element(bytes(4), flag)
    before_end, after_end = template[: len(before_start)], template[len(before_start) + 4 :]
    for first, last in ranges:
        yield before_start + _u32(first)
        if last < 0xFFFFFFFF:
            yield before_end + _u32(last + 1) + after_end


def _split(elements: Iterable[bytes]) -> Iterator[bytes]:
    """Join elements into as few attributes' payloads as they fit in."""
    parts: list[bytes] = []
    size = 0
    for element in elements:
        if size + len(element) > MAX_ATTRIBUTE:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(element)
        size += len(element)
    if parts:
        yield b"".join(parts)
