"""Targets for what the gateway reads of HTTP/1.x, held against h11 and httptools."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h11
import httptools

from fuzz.pieces import pieces
from sandgate.egress.http1 import CHUNKED, MAX_HEAD, RequestHead, RequestHeadParser
from sandgate.egress.http1_body import MAX_LINE, BodyFramer, FramingError
from sandgate.egress.http1_response import MAX_RESPONSE_HEAD, ResponseTracker
from sandgate.egress.no_name import NoName
from sandgate.policy import normalise_name


def http_head(data: bytes) -> None:
    """A head has one meaning: the same in pieces, with more behind it, and to other parsers."""
    whole = _head(iter([data]))
    for size in (1, 7):
        assert _head(pieces(data, size)) == whole
    if whole is None:
        assert len(data) < MAX_HEAD
        return
    assert _head(iter([data + b"\r\n\r\nGET"])) == whole
    if isinstance(whole, NoName):
        return
    assert normalise_name(whole.name) == whole.name
    head = data[: whole.size]
    assert head.endswith(b"\r\n\r\n") and head.index(b"\r\n\r\n") + 4 == whole.size
    again = _head(iter([whole.head]))
    assert isinstance(again, RequestHead) and again.head == whole.head
    assert (again.method, again.name, again.body) == (whole.method, whole.name, whole.body)
    for theirs in (_head_by_h11(head), _head_by_httptools(head)):
        if theirs is not None:
            assert theirs.method == whole.method
            assert [_host_name(host) for host in theirs.hosts] == [whole.name]
            if whole.body == CHUNKED:
                assert (theirs.lengths, len(theirs.codings)) == ([], 1)
            else:
                assert [int(length) for length in theirs.lengths] in ([whole.body], [])
                assert theirs.lengths or whole.body == 0
                assert theirs.codings == []


def http_body(data: bytes) -> None:
    """Where a body ends does not depend on how it comes, and others see its end there too."""
    if not data:
        return
    length, data = (CHUNKED, data[1:]) if data[0] & 1 else (data[0] >> 1, data[1:])
    whole = _body(length, iter([data]))
    for size in (1, 5):
        assert _body(length, pieces(data, size)) == whole
        assert _body(length, pieces(data, size), skip=True) == whole
    failed, done, taken = whole
    assert not (failed and done)
    assert 0 <= taken <= len(data)
    sound = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in pieces(data, 7))
    sound += b"0\r\n\r\n"
    assert _body(CHUNKED, iter([sound + data])) == (False, True, len(sound))
    if not done:
        return
    framing = b"Transfer-Encoding: chunked" if length == CHUNKED else b"Content-Length: %d" % length
    theirs = _body_by_h11(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n" + data)
    assert theirs is None or theirs == data[taken:]


def http_response(data: bytes) -> None:
    """Whether all was answered does not depend on how answers come; others agree where they can."""
    if not data:
        return
    choice, data = data[0], data[1:]
    methods = ["HEAD" if choice >> bit & 1 else "GET" for bit in range(1 + (choice >> 6))]
    whole = _response(methods, iter([data]))
    for size in (1, 11):
        assert _response(methods, pieces(data, size)) == whole
        assert _response(methods, pieces(data, size), skip=True) == whole
    lost, switched, idle = whole
    assert lost + switched + idle <= 1
    theirs = _response_by_h11(methods[0], data) if len(methods) == 1 else None
    if theirs is not None and not lost and not switched:
        assert theirs or not idle
        lenient = data.count(b"\n") != data.count(b"\r\n")  # h11 takes a bare LF for a line's end
        assert idle or not theirs or lenient


def _head(parts: Iterator[bytes]) -> RequestHead | NoName | None:
    parser = RequestHeadParser()
    for part in parts:
        result = parser.feed(part)
        if result is not None:
            return result
    return None


def _body(length: int, parts: Iterator[bytes], *, skip: bool = False) -> tuple[bool, bool, int]:
    """Whether it failed, whether it ended, and how many bytes it had.

    `skip`: what need not be looked at is not, where a part has all of it.
    """
    framer = BodyFramer(length)
    held = bytearray()
    total = 0
    for part in parts:
        if skip and 0 < framer.left <= len(part):
            assert not held
            total += framer.left
            part = part[framer.left :]
            framer.skip()
        held += part
        try:
            taken = framer.take(held)
        except FramingError:
            return True, False, 0
        del held[:taken]
        total += taken
        if framer.done:
            return False, True, total
        assert len(held) <= MAX_LINE
    return False, framer.done, total


def _response(
    methods: list[str], parts: Iterator[bytes], *, skip: bool = False
) -> tuple[bool, bool, bool]:
    tracker = ResponseTracker()
    for method in methods:
        tracker.expect(method, websocket=True)
    for part in parts:
        unseen = tracker.unseen
        if skip and unseen is None:
            continue
        if skip and unseen and unseen <= len(part):
            part = part[unseen:]
            tracker.skip()
        tracker.feed(part)
        assert len(tracker._held) <= MAX_RESPONSE_HEAD
    return tracker.lost, tracker.switched, tracker.idle


@dataclass(slots=True)
class _Head:
    """What another parser makes of a head."""

    method: str = ""
    hosts: list[bytes] = field(default_factory=list)
    lengths: list[bytes] = field(default_factory=list)
    codings: list[bytes] = field(default_factory=list)

    def add(self, name: bytes, value: bytes) -> None:
        known = {
            b"host": self.hosts,
            b"content-length": self.lengths,
            b"transfer-encoding": self.codings,
        }
        if (found := known.get(name.lower())) is not None:
            found.append(value.strip())


def _host_name(host: bytes) -> str | None:
    return normalise_name(host.decode("latin-1").partition(":")[0])


def _head_by_h11(head: bytes) -> _Head | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    assert isinstance(event, h11.Request)
    found = _Head(event.method.decode())
    for name, value in event.headers:
        found.add(name, value)
    return found


class _Callbacks:
    def __init__(self) -> None:
        self.found = _Head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.add(name, value)


def _head_by_httptools(head: bytes) -> _Head | None:
    callbacks = _Callbacks()
    parser = httptools.HttpRequestParser(callbacks)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError:
        return None
    callbacks.found.method = parser.get_method().decode()
    return callbacks.found


def _events(read: Callable[[], object]) -> Iterator[object]:
    while True:
        event = read()
        yield event
        if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.EndOfMessage):
            return


def _body_by_h11(request: bytes) -> bytes | None:
    """What follows the request; None if it is malformed or incomplete."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    connection.receive_data(request)
    try:
        last = list(_events(connection.next_event))[-1]
    except h11.RemoteProtocolError:
        return None
    return connection.trailing_data[0] if isinstance(last, h11.EndOfMessage) else None


def _response_by_h11(method: str, data: bytes) -> bool | None:
    """Has the response ended? None if it is malformed, or ends with the connection."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_RESPONSE_HEAD)
    connection.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(data)
    try:
        last = list(_events(connection.next_event))[-1]
    except h11.RemoteProtocolError:
        return None
    if isinstance(last, h11.EndOfMessage):
        return None if connection.trailing_data[0] else True
    return False
