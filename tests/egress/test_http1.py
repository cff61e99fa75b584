from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.egress.http1 import CHUNKED, MAX_HEAD, RequestHead, RequestHeadParser
from sandgate.egress.http1_body import MAX_LINE, BodyFramer, FramingError
from sandgate.egress.http1_response import ResponseTracker
from sandgate.egress.no_name import NoName, NoNameReason

Result = RequestHead | NoNameReason | None


def parse(data: bytes, step: int | None = None) -> Result:
    parser = RequestHeadParser()
    result = None
    for start in range(0, len(data), step or len(data) or 1):
        result = parser.feed(data[start : start + (step or len(data))])
        if result is not None:
            break
    return result.reason if isinstance(result, NoName) else result


def head(*lines: bytes, start: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((start, *lines)) + b"\r\n\r\n"


HOST = b"Host: good.test"


@pytest.mark.parametrize("step", [None, 1, 7])
@pytest.mark.parametrize(
    "data",
    [
        head(HOST),
        head(b"host:GOOD.Test"),
        head(b"HOST: \t good.test \t"),
        head(b"Host: good.test:80"),
        head(b"Host: good.test:65535"),
        head(b"Host: good.test."),
        head(b"Host: good.test.:8080"),
        head(HOST, start=b"GET / HTTP/1.0"),
        head(HOST, start=b"GET http://good.test/x?y#z HTTP/1.1"),
        head(HOST, start=b"GET HTTP://Good.TEST.:80 HTTP/1.1"),
        head(HOST, start=b"GET http://good.test?x HTTP/1.1"),
        head(HOST, start=b"OPTIONS * HTTP/1.1"),
        head(HOST, start=b"M-SEARCH /caf\xc3\xa9 HTTP/1.1"),
        head(HOST, b"X: caf\xe9", b"Empty:", b"Cookie: a=b; c=d"),
        head(HOST, b"X: " + b"y" * 60_000),
    ],
)
def test_the_name_is_that_of_the_host(data: bytes, step: int | None) -> None:
    result = parse(data + b"the next request", step)
    assert isinstance(result, RequestHead)
    assert result.name == "good.test"
    assert result.size == len(data)
    assert (result.body, result.websocket) == (0, False)


def test_the_framing_of_the_body_is_told() -> None:
    for lines, body in (
        ((b"Content-Length: 0",), 0),
        ((b"Content-Length: 123",), 123),
        ((b"Transfer-Encoding: Chunked",), CHUNKED),
    ):
        result = parse(head(HOST, *lines, start=b"POST / HTTP/1.1"))
        assert isinstance(result, RequestHead)
        assert (result.method, result.body) == ("POST", body)
    result = parse(head(HOST, b"Connection: Upgrade", b"Upgrade: WebSocket"))
    assert isinstance(result, RequestHead)
    assert result.websocket


@pytest.mark.parametrize(
    ("offered", "left"),
    [
        ((b"Upgrade: h2c",), ()),
        ((b"Connection: Upgrade, HTTP2-Settings", b"uPGRADE: H2C", b"HTTP2-Settings: AA"), ()),
        (
            (
                b"Connection: http2-settings,keep-alive , Upgrade",
                b"HTTP2-Settings:A",
                b"Upgrade:h2c",
            ),
            (b"Connection: keep-alive",),
        ),
        (
            (b"Connection: close", b"Connection: Upgrade", b"X-Upgrade: h2c", b"Upgrade: h2c"),
            (b"Connection: close", b"X-Upgrade: h2c"),
        ),
    ],
)
def test_an_offer_of_http2_is_left_out(offered: tuple[bytes, ...], left: tuple[bytes, ...]) -> None:
    start = b"POST http://good.test/connection:%20upgrade HTTP/1.1"
    sent = head(HOST, *offered, b"Content-Length: 2", start=start)
    result = parse(sent + b"hi")
    assert isinstance(result, RequestHead)
    assert (result.name, result.size, result.body) == ("good.test", len(sent), 2)
    assert result.head == head(HOST, *left, b"Content-Length: 2", start=start)
    assert not result.websocket


def test_a_head_without_such_an_offer_is_left_as_it_is() -> None:
    for lines in ((b"Connection: Upgrade", b"Upgrade: websocket"), (b"connection:close",)):
        sent = head(HOST, *lines)
        result = parse(sent + b"more")
        assert isinstance(result, RequestHead)
        assert result.head == sent


R = NoNameReason
UNNAMED: dict[str, tuple[bytes, NoNameReason]] = {
    "no Host": (head(b"X: y"), R.HTTP_NO_HOST),
    "HTTP/1.0 without Host": (head(start=b"GET / HTTP/1.0"), R.HTTP_NO_HOST),
    "absolute form without Host": (head(start=b"GET http://good.test/ HTTP/1.1"), R.HTTP_NO_HOST),
    "two Hosts": (head(HOST, b"Host: evil.test"), R.HTTP_SEVERAL_HOSTS),
    "the same Host twice": (head(HOST, b"hOST: good.test"), R.HTTP_SEVERAL_HOSTS),
    "empty Host": (head(b"Host:"), R.HTTP_INVALID_HOST),
    "address": (head(b"Host: 93.184.216.34"), R.HTTP_INVALID_HOST),
    "IPv6 address": (head(b"Host: [::1]:80"), R.HTTP_INVALID_HOST),
    "list of hosts": (head(b"Host: good.test, evil.test"), R.HTTP_INVALID_HOST),
    "user in Host": (head(b"Host: good.test@evil.test"), R.HTTP_INVALID_HOST),
    "password in Host": (head(b"Host: good.test:80@evil.test"), R.HTTP_INVALID_HOST),
    "path in Host": (head(b"Host: good.test/x"), R.HTTP_INVALID_HOST),
    "port 0": (head(b"Host: good.test:0"), R.HTTP_INVALID_HOST),
    "port 65536": (head(b"Host: good.test:65536"), R.HTTP_INVALID_HOST),
    "port without digits": (head(b"Host: good.test:"), R.HTTP_INVALID_HOST),
    "Host that is not ASCII": (head("Host: gööd.test".encode()), R.HTTP_INVALID_HOST),
    "Kelvin sign in Host": (head("Host: \u212a.test".encode()), R.HTTP_INVALID_HOST),
    "other authority": (
        head(HOST, start=b"GET http://evil.test/ HTTP/1.1"),
        R.HTTP_AUTHORITY_DIFFERS,
    ),
    "authority with user": (
        head(HOST, start=b"GET http://good.test@evil.test/ HTTP/1.1"),
        R.HTTP_BAD_TARGET,
    ),
    "other scheme": (head(HOST, start=b"GET https://good.test/ HTTP/1.1"), R.HTTP_BAD_TARGET),
    "relative target": (head(HOST, start=b"GET x HTTP/1.1"), R.HTTP_BAD_TARGET),
    "asterisk": (head(HOST, start=b"GET * HTTP/1.1"), R.HTTP_BAD_TARGET),
    "CONNECT": (head(HOST, start=b"CONNECT good.test:443 HTTP/1.1"), R.HTTP_CONNECT),
    "connect in lower case": (head(HOST, start=b"connect good.test:1 HTTP/1.1"), R.HTTP_CONNECT),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", R.HTTP2),
    "HTTP/0.9": (b"GET /\r\n", R.NOT_HTTP),
    "HTTP/1.2": (head(HOST, start=b"GET / HTTP/1.2"), R.NOT_HTTP),
    "HTTP/3": (head(HOST, start=b"GET / HTTP/3.0"), R.NOT_HTTP),
    "http in lower case": (head(HOST, start=b"GET / http/1.1"), R.NOT_HTTP),
    "two blanks": (head(HOST, start=b"GET  / HTTP/1.1"), R.NOT_HTTP),
    "tab for a blank": (head(HOST, start=b"GET\t/ HTTP/1.1"), R.NOT_HTTP),
    "blank at the end": (head(HOST, start=b"GET / HTTP/1.1 "), R.NOT_HTTP),
    "empty line first": (b"\r\n" + head(HOST), R.NOT_HTTP),
    "long method": (b"A" * 33 + b" / HTTP/1.1\r\n", R.NOT_HTTP),
    "TLS": (b"\x16\x03\x01\x02\x00\x01", R.NOT_HTTP),
    "SSH": (b"SSH-2.0-OpenSSH\r\n", R.NOT_HTTP),
    "NUL": (head(b"Host: good.test\0.evil.test"), R.HTTP_NUL),
    "NUL in the target": (head(HOST, start=b"GET /\0 HTTP/1.1"), R.HTTP_NUL),
    "bare LF": (b"GET / HTTP/1.1\nHost: good.test\n\n", R.HTTP_BARE_LF),
    "bare LF in the head": (head(HOST, b"X: y\nHost: evil.test"), R.HTTP_BARE_LF),
    "bare LF at its end": (b"GET / HTTP/1.1\r\nHost: good.test\r\n\n", R.HTTP_BARE_LF),
    "bare CR": (head(HOST, b"X: y\rHost: evil.test"), R.HTTP_BARE_CR),
    "two CR": (head(HOST, b"X: y\r"), R.HTTP_BARE_CR),
    "escape": (head(HOST, b"X: \x1b[0m"), R.HTTP_CONTROL_CHARACTER),
    "folded": (head(HOST, b"X: y", b" z"), R.HTTP_FOLDED_HEADER),
    "folded first header": (head(b" Host: evil.test", HOST), R.HTTP_FOLDED_HEADER),
    "blank before the colon": (head(b"Host : good.test"), R.HTTP_BAD_HEADER),
    "no colon": (head(HOST, b"X"), R.HTTP_BAD_HEADER),
    "no header name": (head(HOST, b": x"), R.HTTP_BAD_HEADER),
    "odd header name": (head(HOST, b"Ho(st: x"), R.HTTP_BAD_HEADER),
    "length and coding": (
        head(HOST, b"Content-Length: 4", b"Transfer-Encoding: chunked"),
        R.HTTP_LENGTH_AND_ENCODING,
    ),
    "two lengths": (
        head(HOST, b"Content-Length: 4", b"Content-Length: 5"),
        R.HTTP_BAD_CONTENT_LENGTH,
    ),
    "list of lengths": (head(HOST, b"Content-Length: 4, 4"), R.HTTP_BAD_CONTENT_LENGTH),
    "signed length": (head(HOST, b"Content-Length: +4"), R.HTTP_BAD_CONTENT_LENGTH),
    "octal length": (head(HOST, b"Content-Length: 010"), R.HTTP_BAD_CONTENT_LENGTH),
    "hexadecimal length": (head(HOST, b"Content-Length: 0x4"), R.HTTP_BAD_CONTENT_LENGTH),
    "empty length": (head(HOST, b"Content-Length:"), R.HTTP_BAD_CONTENT_LENGTH),
    "huge length": (head(HOST, b"Content-Length: " + b"9" * 19), R.HTTP_BAD_CONTENT_LENGTH),
    "unknown coding": (head(HOST, b"Transfer-Encoding: gzip"), R.HTTP_BAD_TRANSFER_ENCODING),
    "two codings": (
        head(HOST, b"Transfer-Encoding: gzip, chunked"),
        R.HTTP_BAD_TRANSFER_ENCODING,
    ),
    "coding twice": (
        head(HOST, b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        R.HTTP_BAD_TRANSFER_ENCODING,
    ),
    "obscured coding": (head(HOST, b"Transfer-Encoding: \x0bchunked"), R.HTTP_CONTROL_CHARACTER),
    "coding in HTTP/1.0": (
        head(HOST, b"Transfer-Encoding: chunked", start=b"POST / HTTP/1.0"),
        R.HTTP_BAD_TRANSFER_ENCODING,
    ),
    "upgrade to either": (head(HOST, b"Upgrade: websocket, h2c"), R.HTTP_BAD_UPGRADE),
    "two upgrades": (
        head(HOST, b"Upgrade: websocket", b"Upgrade: h2c"),
        R.HTTP_BAD_UPGRADE,
    ),
    "two offers of HTTP/2": (head(HOST, b"Upgrade: h2c", b"Upgrade: h2c"), R.HTTP_BAD_UPGRADE),
    "HTTP/2 settings": (head(HOST, b"HTTP2-Settings: AAAA"), R.HTTP_BAD_UPGRADE),
    "too long a head": (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 12_000, R.HTTP_TOO_LARGE),
    "too long a line": (b"GET /" + b"a" * MAX_HEAD, R.HTTP_TOO_LARGE),
}


@pytest.mark.parametrize("step", [None, 1, 5])
@pytest.mark.parametrize("case", UNNAMED)
def test_what_could_be_read_differently_has_no_name(case: str, step: int | None) -> None:
    data, reason = UNNAMED[case]
    if step == 1 and len(data) > MAX_HEAD:
        step = 1000
    assert parse(data, step) is reason


@pytest.mark.parametrize(
    "start", [b"", b"G", b"GET", b"GET ", b"GET / HTTP/1.1\r", head(HOST)[:-1]]
)
def test_an_unfinished_head_waits_for_more(start: bytes) -> None:
    assert parse(start) is None


def test_a_head_of_one_byte_segments_takes_no_quadratic_time() -> None:
    parser = RequestHeadParser()
    assert parser.feed(b"GET /") is None
    for _ in range(60_000):
        assert parser.feed(b"a") is None


LINES = st.sampled_from(
    [b"GET / HTTP/1.1", HOST, b"Host: b", b"X: y", b" z", b"", b"Content-Length: 3", b"\0", b"(:"]
)
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""])


@given(st.lists(st.tuples(LINES, ENDS)), st.integers(1, 40))
def test_the_segmentation_never_changes_the_answer(
    lines: list[tuple[bytes, bytes]], step: int
) -> None:
    data = b"GET / HTTP/1.1\r\n" + b"".join(line + end for line, end in lines)
    assert parse(data, 1) == parse(data) == parse(data, step)
    tail = data[16:]
    assert parse(tail, 1) == parse(tail)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_never_crash_it(data: bytes) -> None:
    assert parse(data, 1) == parse(data)
    assert parse(b"GET / HTTP/1.1\r\n" + data, 1) == parse(b"GET / HTTP/1.1\r\n" + data)


# Bodies


def frame(length: int, data: bytes, step: int | None = None) -> tuple[int, bool] | None:
    """How many bytes were taken and whether the message is complete; None for an error."""
    framer = BodyFramer(length)
    held, total = b"", 0
    try:
        for start in range(0, len(data), step or len(data) or 1):
            held += data[start : start + (step or len(data))]
            taken = framer.take(held)
            total += taken
            held = held[taken:]
    except FramingError:
        return None
    return total, framer.done


NEXT = b"GET / HTTP/1.1\r\n"


@pytest.mark.parametrize("step", [None, 1, 3])
@pytest.mark.parametrize(
    ("length", "body"),
    [
        (0, b""),
        (5, b"12345"),
        (CHUNKED, b"0\r\n\r\n"),
        (CHUNKED, b"5\r\nhello\r\n0\r\n\r\n"),
        (CHUNKED, b'00A;name="v"\r\n0123456789\r\n1\r\n\n\r\n000\r\nX: y\r\nZ:\r\n\r\n'),
    ],
)
def test_a_body_ends_where_its_framing_says(length: int, body: bytes, step: int | None) -> None:
    assert frame(length, body + NEXT, step) == (len(body), True)
    if body:
        taken = frame(length, body[:-1], step)
        assert taken is not None
        assert not taken[1]


@pytest.mark.parametrize("step", [None, 1, 3])
@pytest.mark.parametrize(
    "body",
    [
        b"x\r\n",
        b"\r\n",
        b"-1\r\n",
        b"0x5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;x\nhello\r\n0\r\n\r\n",
        b"5;x\rhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello0\r\n\r\n",
        b"0\r\n\n",
        b"0\r\nX\r\n\r\n",
        b"0\r\n X: y\r\n\r\n",
        b"0\r\nContent-Length: 3\r\n\r\n",
        b"0\r\nHost: evil.test\r\n\r\n",
        b"1000000000000000\r\n",
        b"5;" + b"x" * MAX_LINE,
        b"0\r\n" + b"X: 1234567890\r\n" * 2000,
    ],
)
def test_a_malformed_chunked_body_is_an_error(body: bytes, step: int | None) -> None:
    assert frame(CHUNKED, body, step) is None


@given(st.binary(max_size=60), st.integers(1, 9))
def test_the_segmentation_never_changes_where_a_body_ends(data: bytes, step: int) -> None:
    for stream in (data, b"3\r\nabc\r\n" + data, b"0\r\nA: b\r\n" + data):
        assert frame(CHUNKED, stream, 1) == frame(CHUNKED, stream) == frame(CHUNKED, stream, step)


@pytest.mark.parametrize("length", [5, CHUNKED])
def test_what_need_not_be_looked_at_can_be_skipped(length: int) -> None:
    before, after = (b"5\r\n", b"\r\n0\r\n\r\n") if length == CHUNKED else (b"", b"")
    framer = BodyFramer(length)
    assert framer.take(before + b"12") == len(before) + 2
    assert framer.left == 3
    framer.skip()
    assert framer.left == 0
    assert framer.done is (length != CHUNKED)
    assert framer.take(after + NEXT) == len(after)
    assert framer.done


# Responses

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


def track(methods: list[str], data: bytes, step: int | None, *, websocket: bool = False) -> str:
    """The state a tracker ends in."""
    tracker = ResponseTracker()
    for method in methods:
        tracker.expect(method, websocket)
    for start in range(0, len(data), step or len(data)):
        tracker.feed(data[start : start + (step or len(data))])
    if tracker.switched:
        return "switched"
    if tracker.lost:
        return "lost"
    return "idle" if tracker.idle else "waiting"


@pytest.mark.parametrize("step", [None, 1, 4])
@pytest.mark.parametrize(
    ("methods", "data", "state"),
    [
        (["GET"], OK, "idle"),
        (["GET"], OK[:-1], "waiting"),
        (["GET"], CHUNKS, "idle"),
        (["GET"], CHUNKS[:-1], "waiting"),
        (["GET", "GET"], OK, "waiting"),
        (["GET", "GET", "GET"], OK + CHUNKS + OK, "idle"),
        (["HEAD", "GET"], OK[:-2] + OK, "idle"),
        (["GET"], b"HTTP/1.1 204 No Content\r\n\r\n", "idle"),
        (["GET"], b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "idle"),
        (["POST"], b"HTTP/1.1 100 Continue\r\n\r\n", "waiting"),
        (["POST"], b"HTTP/1.1 100 Continue\r\n\r\n" + OK, "idle"),
        (["GET"], b"HTTP/1.0 200\r\n\r\nuntil the end", "lost"),
        (["GET"], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "lost"),
        (["GET"], b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "lost"),
        (["GET"], b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n", "lost"),
        (["GET"], b"ICY 200 OK\r\n\r\n", "lost"),
        (["GET"], b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "lost"),
        ([], OK, "lost"),
        (["GET"], OK + OK, "lost"),
        (["GET"], b"x" * 70_000, "lost"),
    ],
)
def test_responses_are_followed_to_their_end(
    methods: list[str], data: bytes, state: str, step: int | None
) -> None:
    assert track(methods, data, step) == state


def test_the_rest_of_a_response_can_be_skipped() -> None:
    tracker = ResponseTracker()
    tracker.expect("GET", False)
    tracker.expect("GET", False)
    assert tracker.unseen == 0
    tracker.feed(OK[:-1])
    assert tracker.unseen == 1
    tracker.skip()
    assert tracker.unseen == 0
    tracker.feed(CHUNKS[:-9])
    assert tracker.unseen == 2
    tracker.skip()
    assert not tracker.idle
    tracker.feed(CHUNKS[-7:])
    assert tracker.idle
    tracker.feed(OK)  # which nobody asked for
    assert tracker.lost and tracker.unseen is None


def test_only_a_requested_upgrade_switches() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x00"
    assert track(["GET"], switching, None, websocket=True) == "switched"
    assert track(["GET", "GET"], switching, None, websocket=True) == "lost"


@given(st.binary(max_size=100), st.integers(1, 9))
def test_the_segmentation_never_changes_what_a_response_is(data: bytes, step: int) -> None:
    for stream in (b"x" + data, CHUNKS[:-8] + data, OK + OK[:9] + data):
        assert track(["GET"] * 3, stream, None) == track(["GET"] * 3, stream, step)
