"""What happened to a sandbox, in bounded memory."""

from __future__ import annotations

import pytest

from sandgate.node.journal import CAPACITY, Entry, Journal, JournalQuery, Level


def journal(count: int = 4) -> Journal:
    levels = [Level.INFO, Level.ERROR, Level.DEBUG, Level.WARN]
    return Journal(Entry(number, levels[number % 4], f"m{number}", {}) for number in range(count))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (JournalQuery(), [0, 1, 2, 3]),
        (JournalQuery(backward=True), [3, 2, 1, 0]),
        (JournalQuery(limit=2), [0, 1]),
        (JournalQuery(limit=0), []),
        (JournalQuery(limit=2, backward=True), [3, 2]),
        (JournalQuery(cursor=2), [2, 3]),
        (JournalQuery(cursor=2, backward=True), [2, 1, 0]),
        (JournalQuery(level=Level.INFO), [0, 1, 3]),
        (JournalQuery(level=Level.ERROR), [1]),
        (JournalQuery(search="m2"), [2]),
        (JournalQuery(search="M2"), []),
    ],
)
def test_entries_are_found(query: JournalQuery, expected: list[int]) -> None:
    assert [entry.at for entry in journal().find(query)] == expected


def test_the_oldest_go_first_and_long_fields_are_cut() -> None:
    full = journal(CAPACITY + 10)
    full.add("long", field="x" * 10_000, absent=None)
    found = full.find(JournalQuery(limit=10_000))
    assert len(found) == CAPACITY and found[0].at == 11
    assert found[-1].fields == {"field": "x" * 500}


def test_no_two_entries_have_the_same_moment() -> None:
    made = Journal()
    for _ in range(50):
        made.add("again")
    moments = [entry.at for entry in made.find(JournalQuery())]
    assert len(set(moments)) == 50 and moments == sorted(moments)


def test_a_journal_comes_back_from_what_it_packed() -> None:
    made = journal()
    made.add("with fields", Level.WARN, end_at="now")
    assert made.changed
    again = Journal.unpack(made.pack())
    assert again.find(JournalQuery()) == made.find(JournalQuery())
    assert not made.changed and not again.changed
    for damaged in (b"{", b"[1]", b'[[1, 9, "", {}]]', b"[[1]]"):
        with pytest.raises((ValueError, TypeError)):
            Journal.unpack(damaged)
