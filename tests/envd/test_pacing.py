"""When output is left alone for a moment."""

from __future__ import annotations

import time
from base64 import b64decode

import httpx

from envd.harness import start, stream
from sandgate.envd.pacing import PAUSE_S, Pace


def test_some_short_reads_are_made_at_once_and_those_of_a_flood_apart() -> None:
    pace = Pace()
    pauses = [pace.pause_after(6, now=100 + number / 1e6) for number in range(100)]
    assert pauses == [0.0] * 32 + [PAUSE_S] * 68


def test_a_flood_that_goes_on_has_few_reads_at_once() -> None:
    pace, now, pauses = Pace(), 100.0, 0
    for _ in range(3000):
        pause = pace.pause_after(6, now)
        now += pause + 1e-5
        pauses += pause > 0
    assert pauses > 900


def test_a_pause_of_the_command_makes_it_good() -> None:
    pace = Pace()
    assert [pace.pause_after(6, now=5.0) for _ in range(33)][-1] == PAUSE_S
    assert pace.pause_after(6, now=5.2) == 0.0


def test_lines_at_a_moderate_rate_are_never_late() -> None:
    pace = Pace()
    assert not any(pace.pause_after(80, now=number * 0.005) for number in range(10_000))


def test_long_reads_are_not_counted() -> None:
    pace = Pace()
    assert not any(pace.pause_after(1024, now=1.0) for _ in range(1000))


def test_a_flood_of_lines_comes_in_large_parts_and_whole(client: httpx.Client) -> None:
    flood = "i=0; while [ $i -lt 60000 ]; do echo line; i=$((i + 1)); done"
    begun = time.monotonic()
    with stream(client, "Start", start(f"{flood}; sleep 0.2; echo end")) as opened:
        texts = [event["data"]["stdout"] for event in opened.rest() if "data" in event]
    seconds = time.monotonic() - begun
    assert b"".join(map(b64decode, texts)) == b"line\n" * 60000 + b"end\n"
    # For each pause of 10 ms three short ones and one or two long ones.
    assert len(texts) < 100 + 600 * seconds, (len(texts), seconds)


def test_what_a_flood_wrote_last_does_not_wait(client: httpx.Client) -> None:
    flood = "for i in $(seq 2000); do echo line; done; echo error >&2; exit 3"
    for _ in range(5):
        with stream(client, "Start", start(flood)) as opened:
            events = opened.rest()
        data = [event["data"] for event in events if "data" in event]
        out = b"".join(b64decode(part.get("stdout", "")) for part in data)
        error = b"".join(b64decode(part.get("stderr", "")) for part in data)
        assert (out, error) == (b"line\n" * 2000, b"error\n")
        assert events[-1]["end"]["exitCode"] == 3
