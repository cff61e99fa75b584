"""Adding decisions up, and sending them: no I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandgate.decisions.tally import PER_SANDBOX, TOTAL, Subject, Sum, Tally
from sandgate.decisions.wire import MAX_DATAGRAM, Batch, decode, encode
from sandgate.reasons import Reason

SUBJECT = Subject("box", "tcp", "192.0.2.1", 22, None, False, Reason.DENIED_ADDRESS, "0.0.0.0/0")

subjects = st.builds(
    Subject,
    st.text(max_size=32),
    st.sampled_from(["tls", "http", "dns", "tcp", "47"]),
    st.ip_addresses(v=4).map(str),
    st.integers(0, 65535),
    st.none() | st.text(max_size=255),
    st.booleans(),
    st.sampled_from(Reason),
    st.none() | st.text(max_size=255),
    st.booleans(),
)
moments = st.floats(0, 2e9)
counts = st.integers(0, 2**63)
sums = st.builds(Sum, moments, moments, counts, counts, counts, counts)


def subject(box: str, port: int) -> Subject:
    return SUBJECT._replace(sandbox_id=box, port=port)


def test_the_same_is_added_up() -> None:
    tally = Tally()
    tally.add(SUBJECT, Sum(5.0, 5.0))
    tally.add(SUBJECT, Sum(7.0, 7.0, 0, 10, 20, 30))
    tally.add(SUBJECT, Sum(6.0, 6.0))
    assert tally.take(10) == ([(SUBJECT, Sum(5.0, 7.0, 2, 10, 20, 30))], {})
    assert not tally and tally.take(10) == ([], {})


def test_who_says_too_much_is_counted_and_keeps_nobody_else_out() -> None:
    tally = Tally()
    for port in range(PER_SANDBOX + 50):
        tally.add(subject("noisy", port), Sum(1.0, 1.0, 2))
    tally.add(subject("quiet", 1), Sum(1.0, 1.0))
    taken, unrecorded = tally.take(TOTAL)
    assert unrecorded == {"noisy": 100}
    assert [item.sandbox_id for item, _ in taken].count("noisy") == PER_SANDBOX
    assert (subject("quiet", 1), Sum(1.0, 1.0)) in taken


def test_a_flood_does_not_hide_what_happens_for_other_reasons() -> None:
    tally = Tally()
    for port in range(PER_SANDBOX + 50):
        tally.add(subject("noisy", port), Sum(1.0, 1.0))
    rare = [
        subject("noisy", port)._replace(reason=reason)
        for reason in (Reason.LIMIT_DNS_RATE, Reason.IP_OPTIONS)
        for port in (1, 2)
    ]
    for one in rare:
        tally.add(one, Sum(1.0, 1.0))
    taken, unrecorded = tally.take(TOTAL)
    assert [item for item, _ in taken if item in rare] == [rare[0], rare[2]]
    assert unrecorded == {"noisy": 52}


def test_memory_is_bounded_however_many_sandboxes_there_are() -> None:
    tally = Tally()
    boxes = 3000
    for port in range(20):
        for box in range(boxes):
            tally.add(subject(f"box{box}", port), Sum(1.0, 1.0))
    taken, unrecorded = tally.take(10**9)
    assert len(taken) <= TOTAL
    assert len(taken) + sum(unrecorded.values()) == 20 * boxes
    assert {item.sandbox_id for item, _ in taken} == {f"box{box}" for box in range(boxes)}


def test_turns_are_taken() -> None:
    tally = Tally()
    for box in ("a", "b", "c"):
        for port in range(10):
            tally.add(subject(box, port), Sum(1.0, 1.0))
    served = [[item.sandbox_id for item, _ in tally.take(6)[0]] for _ in range(5)]
    assert all(sorted(turn) == ["a", "a", "b", "b", "c", "c"] for turn in served)


@given(st.lists(st.tuples(subjects, sums), max_size=120), st.dictionaries(st.text(), counts))
def test_batches_survive_the_wire(
    rows: list[tuple[Subject, Sum]], unrecorded: dict[str, int]
) -> None:
    batch = Batch("egress", rows, unrecorded, {"connections": 3})
    datagrams = list(encode(batch))
    assert all(len(datagram) < MAX_DATAGRAM for datagram in datagrams)
    parts = [decode(datagram) for datagram in datagrams]
    assert [row for part in parts for row in part.sums] == rows
    assert parts[0] == replace(batch, sums=parts[0].sums)
    assert all(not part.unrecorded and not part.gauges for part in parts[1:])


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"[]",
        b"{}",
        b'{"source":"x","sums":[[]]}',
        b'{"source":"x","sums":[["b","tcp","a",1,null,true,"no_such_reason",null,false,1,1,1,1,1,1]]}',
        b'{"source":"x","sums":[],"gauges":[]}',
        b"\xff",
    ],
)
def test_what_is_malformed_is_refused(datagram: bytes) -> None:
    with pytest.raises(ValueError):
        decode(datagram)
