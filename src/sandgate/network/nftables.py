"""Tables, chains, sets and maps of nftables, and the all-or-nothing transactions that change them
(linux/netfilter/nf_tables.h, nfnetlink.h)."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from sandgate.network.netlink import (
    MAX_ATTRIBUTE,
    NLM_F_APPEND,
    NLM_F_CREATE,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    nested,
    text,
)
from sandgate.network.statements import Rule, show

NETLINK_NETFILTER = 12

_SUBSYSTEM = 10 << 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NEWTABLE, _GETTABLE, _DELTABLE = 0, 1, 2
_NEWCHAIN, _GETCHAIN, _DELCHAIN = 3, 4, 5
_NEWRULE = 6
_NEWSET, _GETSET, _DELSET = 9, 10, 11
_NEWSETELEM, _GETSETELEM, _DELSETELEM = 12, 13, 14
_NEWOBJECT = 18

# Families whose tables see IPv4 packets of the host; our own table is of the first.
_INET, _IPV4 = 1, 2
_FAMILIES = {_INET: "inet", _IPV4: "ip"}

_TABLE_NAME, _TABLE_FLAGS, _TABLE_USERDATA = 1, 2, 6
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 1, 3, 4, 5, 7
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LEN = 1, 2, 3, 4, 5
_SET_DATA_TYPE, _SET_DATA_LEN, _SET_DESCRIPTION, _SET_ID, _SET_TIMEOUT = 6, 7, 9, 10, 11
_ELEM_TABLE, _ELEM_SET, _ELEM_ELEMENTS = 1, 2, 3
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_INTERVAL_END = 1, 2, 3, 1
_ELEM_EXPRESSIONS = 11
_SET_F_INTERVAL, _SET_F_MAP, _SET_F_TIMEOUT, _SET_F_EVAL = 4, 8, 0x10, 0x20
_DATA_VERDICT = 0xFFFFFF00

# Type numbers that the kernel only keeps for `nft` to print elements by (nftables' datatype.h).
_TYPE_IPADDR, _TYPE_PORT, _TYPE_IFNAME, _TYPE_BITS = 7, 13, 41, 6

_COMMENT = 0

_OBJECT_TABLE, _OBJECT_NAME, _OBJECT_TYPE, _OBJECT_DATA = 1, 2, 3, 4
_CT_TIMEOUT, _IPV4_PROTOCOL, _TCP = 7, 0x0800, 6
_TIMEOUT_L3PROTO, _TIMEOUT_L4PROTO, _TIMEOUT_DATA = 1, 2, 3
_TCP_STATES = (
    *("SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT"),
    "CLOSE",
)
"""In the order of their numbers, from 1 (linux/netfilter/nfnetlink_cttimeout.h)."""

_METER_SIZE = 65_535
_METER_SECONDS = 60
"""How long the bucket of an interface is kept that nothing came from."""

Ranges = tuple[tuple[int, int], ...]
"""First and last address, as numbers."""

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

    RANGES = (_TYPE_IPADDR, 4, _SET_F_INTERVAL)
    ADDRESSES = (_TYPE_IPADDR, 4, 0)
    LINKS = (_TYPE_IFNAME << _TYPE_BITS | _TYPE_IPADDR, 20, 0)
    """Interface name and address."""
    PORTS_OF = (_TYPE_IPADDR << _TYPE_BITS | _TYPE_PORT, 8, 0)
    """Address and port, which fills four bytes."""
    PAIRS = (_TYPE_IPADDR << _TYPE_BITS | _TYPE_IPADDR, 8, 0)
    """Two addresses."""
    VERDICTS = (_TYPE_IPADDR, 4, _SET_F_MAP)
    """A map from an address to a verdict."""
    METER = (_TYPE_IFNAME, 16, _SET_F_TIMEOUT | _SET_F_EVAL)
    """Buckets by interface, which rules make as packets come."""
    COUNTS = (_TYPE_IFNAME, 16, _SET_F_EVAL)
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


@dataclass(frozen=True, slots=True)
class RangeSet:
    """A set with its content: ranges of addresses, both ends included, ascending, not touching."""

    name: str
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Element:
    """An element of a set; of a map, with the verdict that :mod:`statements` encoded."""

    set: NamedSet
    key: bytes
    verdict: bytes = b""


@dataclass(frozen=True, slots=True)
class TcpTimeouts:
    """Seconds after which connection tracking forgets a TCP connection, by its state."""

    name: str
    seconds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ForeignChain:
    """A base chain of any table, as far as it matters to another: where, and its default."""

    table: str
    name: str
    hook: int
    drops: bool


class Table:
    """Builds the messages that create and change one table of the `inet` family."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._set_ids = itertools.count(1)

    def create(self, *, flags: int = 0, comment: str | None = None) -> Message:
        """Create the table, or do nothing if it exists."""
        body = text(_TABLE_NAME, self.name)
        if flags:
            body += attribute(_TABLE_FLAGS, _u32(flags))
        if comment is not None:
            value = comment.encode() + b"\0"
            body += attribute(_TABLE_USERDATA, bytes((_COMMENT, len(value))) + value)
        return self._message(_NEWTABLE, NLM_F_CREATE, body, f"create table {self.name}")

    def delete(self) -> Message:
        """Delete the table with all that is in it."""
        return self._message(_DELTABLE, 0, text(_TABLE_NAME, self.name), f"delete {self.name}")

    def create_chain(self, chain: Chain) -> Message:
        """Create the chain, without its rules (they may refer to chains created later)."""
        body = text(_CHAIN_TABLE, self.name) + text(_CHAIN_NAME, chain.name)
        if chain.hook is not None:
            body += (
                nested(
                    _CHAIN_HOOK,
                    attribute(1, _u32(chain.hook.number)),
                    attribute(2, _u32(chain.hook.priority)),
                )
                + attribute(_CHAIN_POLICY, _u32(1))
                + text(_CHAIN_TYPE, chain.hook.type)
            )
        return self._message(_NEWCHAIN, NLM_F_CREATE, body, f"create chain {chain.name}")

    def delete_chain(self, name: str) -> Message:
        """Delete the chain and its rules."""
        body = text(_CHAIN_TABLE, self.name) + text(_CHAIN_NAME, name)
        return self._message(_DELCHAIN, 0, body, f"delete chain {name}")

    def add_rules(self, chain: Chain) -> Iterator[Message]:
        """Append the chain's rules to it."""
        start = text(_RULE_TABLE, self.name) + text(_RULE_CHAIN, chain.name)
        for rule in chain.rules:
            expressions = (statement.expressions for statement in rule)
            body = start + nested(_RULE_EXPRESSIONS, *expressions)
            what = f"add to chain {chain.name}: {show(rule)}"
            yield self._message(_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, what)

    def create_set(self, named: NamedSet) -> Message:
        """Create an empty set or map."""
        kind = named.kind
        body = (
            text(_SET_TABLE, self.name)
            + text(_SET_NAME, named.name)
            + attribute(_SET_KEY_TYPE, _u32(kind.key_type))
            + attribute(_SET_KEY_LEN, _u32(kind.key_length))
            + attribute(_SET_FLAGS, _u32(kind.flags))
            + attribute(_SET_ID, _u32(next(self._set_ids) & 0x7FFFFFFF))
        )
        if kind is Kind.VERDICTS:
            body += attribute(_SET_DATA_TYPE, _u32(_DATA_VERDICT))
            body += attribute(_SET_DATA_LEN, _u32(0))
        if kind in (Kind.METER, Kind.COUNTS):
            body += nested(_SET_DESCRIPTION, attribute(1, _u32(_METER_SIZE)))
        if kind is Kind.METER:
            body += attribute(_SET_TIMEOUT, (_METER_SECONDS * 1000).to_bytes(8))
        return self._message(_NEWSET, NLM_F_CREATE, body, f"create set {named.name}")

    def create_timeouts(self, timeouts: TcpTimeouts) -> Message:
        """Create the object that rules give connections their timeouts by."""
        seconds = (
            attribute(_TCP_STATES.index(state) + 1, _u32(value))
            for state, value in timeouts.seconds.items()
        )
        body = (
            text(_OBJECT_TABLE, self.name)
            + text(_OBJECT_NAME, timeouts.name)
            + attribute(_OBJECT_TYPE, _u32(_CT_TIMEOUT))
            + nested(
                _OBJECT_DATA,
                attribute(_TIMEOUT_L3PROTO, _IPV4_PROTOCOL.to_bytes(2)),
                attribute(_TIMEOUT_L4PROTO, bytes((_TCP,))),
                nested(_TIMEOUT_DATA, *seconds),
            )
        )
        return self._message(_NEWOBJECT, NLM_F_CREATE, body, f"create timeouts {timeouts.name}")

    def create_range_set(self, content: RangeSet) -> Iterator[Message]:
        """Create a set of ranges, in as many messages as its elements need."""
        yield self.create_set(NamedSet(content.name, Kind.RANGES))
        yield from self._elements(_NEWSETELEM, content.name, _intervals(content.ranges))

    def delete_set(self, name: str) -> Message:
        """Delete a set or map."""
        body = text(_SET_TABLE, self.name) + text(_SET_NAME, name)
        return self._message(_DELSET, 0, body, f"delete set {name}")

    def add_element(self, element: Element) -> Iterator[Message]:
        """Add an element to its set."""
        data = nested(_ELEM_DATA, element.verdict) if element.verdict else b""
        encoded = _element(element.key, data)
        yield from self._elements(_NEWSETELEM, element.set.name, [encoded])

    def delete_element(self, element: Element) -> Iterator[Message]:
        """Delete an element from its set."""
        yield from self._elements(_DELSETELEM, element.set.name, [_element(element.key)])

    def _elements(self, kind: int, name: str, elements: Iterable[bytes]) -> Iterator[Message]:
        start = text(_ELEM_TABLE, self.name) + text(_ELEM_SET, name)
        flags = NLM_F_CREATE if kind == _NEWSETELEM else 0
        what = f"{'add' if flags else 'delete'} elements of {name}"
        for part in _split(elements):
            body = start + nested(_ELEM_ELEMENTS, part)
            yield self._message(kind, flags, body, what)

    def _message(self, kind: int, flags: int, body: bytes, what: str) -> Message:
        header = struct.pack(">BBH", _INET, 0, 0)
        return Message(_SUBSYSTEM | kind, flags, header + body, f"nftables: {what}")


def commit(socket: NetlinkSocket, messages: Sequence[Message]) -> None:
    """Apply all messages, or none. Raises :class:`~sandgate.network.netlink.NetlinkError`."""
    header = struct.pack(">BBH", 0, 0, _SUBSYSTEM >> 8)
    begin = Message(_BATCH_BEGIN, 0, header, "nftables: transaction")
    socket.transaction(begin, messages, Message(_BATCH_END, 0, header, "nftables: commit"))


def read_comment(socket: NetlinkSocket, name: str) -> str | None:
    """The comment of an `inet` table, or None without table or comment."""
    header = struct.pack(">BBH", _INET, 0, 0)
    request = Message(_SUBSYSTEM | _GETTABLE, 0, header, "nftables: list tables")
    for payload in socket.dump(request):
        found = dict(attributes(payload[4:]))
        if found.get(_TABLE_NAME) == name.encode() + b"\0":
            data = found.get(_TABLE_USERDATA, b"")
            if len(data) > 2 and data[0] == _COMMENT:
                return data[2 : 2 + data[1]].rstrip(b"\0").decode(errors="replace")
    return None


def read_meter(socket: NetlinkSocket, table: str, name: str) -> dict[str, int]:
    """How many packets a meter has counted, by interface. A bucket that was given up is not there.

    Raises :class:`~sandgate.network.netlink.NetlinkError`.
    """
    body = struct.pack(">BBH", _INET, 0, 0) + text(_ELEM_TABLE, table) + text(_ELEM_SET, name)
    request = Message(_SUBSYSTEM | _GETSETELEM, 0, body, f"nftables: list set {name}")
    found = {}
    for payload in socket.dump(request):
        for _, element in attributes(dict(attributes(payload[4:])).get(_ELEM_ELEMENTS, b"")):
            parts = dict(attributes(element))
            key = dict(attributes(parts[_ELEM_KEY]))[1]
            for _, expression in attributes(parts.get(_ELEM_EXPRESSIONS, b"")):
                words = dict(attributes(expression))
                if words[1] == b"counter\0":
                    packets = dict(attributes(words[2]))[2]
                    found[_string(key)] = int.from_bytes(packets)
    return found


def list_keys(socket: NetlinkSocket, table: str, name: str) -> list[bytes]:
    """The keys of a set or a map. Raises :class:`~sandgate.network.netlink.NetlinkError`."""
    body = struct.pack(">BBH", _INET, 0, 0) + text(_ELEM_TABLE, table) + text(_ELEM_SET, name)
    request = Message(_SUBSYSTEM | _GETSETELEM, 0, body, f"nftables: list set {name}")
    return [
        dict(attributes(dict(attributes(element))[_ELEM_KEY]))[1]
        for payload in socket.dump(request)
        for _, element in attributes(dict(attributes(payload[4:])).get(_ELEM_ELEMENTS, b""))
    ]


def list_names(socket: NetlinkSocket, table: str) -> list[str]:
    """The names of a table's chains and sets. Raises NetlinkError."""
    names = []
    body = struct.pack(">BBH", _INET, 0, 0)
    for kind, own in ((_GETCHAIN, _CHAIN_TABLE), (_GETSET, _SET_TABLE)):
        request = Message(_SUBSYSTEM | kind, 0, body, "nftables: list chains and sets")
        for payload in socket.dump(request):
            found = dict(attributes(payload[4:]))
            if found.get(own) == table.encode() + b"\0":
                names.append(_string(found[_CHAIN_NAME if kind == _GETCHAIN else _SET_NAME]))
    return names


def base_chains(socket: NetlinkSocket) -> list[ForeignChain]:
    """The base chains of all tables that see IPv4 packets."""
    request = Message(
        _SUBSYSTEM | _GETCHAIN, 0, struct.pack(">BBH", 0, 0, 0), "nftables: list chains"
    )
    chains = []
    for payload in socket.dump(request):
        found = dict(attributes(payload[4:]))
        if _CHAIN_HOOK not in found or payload[0] not in _FAMILIES:
            continue
        hook = dict(attributes(found[_CHAIN_HOOK]))
        chains.append(
            ForeignChain(
                table=f"{_FAMILIES[payload[0]]} {_string(found[_CHAIN_TABLE])}",
                name=_string(found[_CHAIN_NAME]),
                hook=int.from_bytes(hook[1]),
                drops=int.from_bytes(found.get(_CHAIN_POLICY, b"\1")) == 0,
            )
        )
    return chains


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _u32(value: int) -> bytes:
    return struct.pack(">I", value & 0xFFFFFFFF)


def _element(key: bytes, *more: bytes) -> bytes:
    return nested(1, nested(_ELEM_KEY, attribute(1, key)), *more)


def _intervals(ranges: Ranges) -> Iterator[bytes]:
    """Elements of an interval set: where each range begins, and the first address after it.

    A range that reaches 255.255.255.255 has no end element.
    """
    flag = attribute(_ELEM_FLAGS, _u32(_ELEM_INTERVAL_END))
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
