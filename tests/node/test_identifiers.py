"""Names and tokens."""

from __future__ import annotations

import re

import pytest

from sandgate.node.identifiers import new_sandbox_id, new_token, parse_sandbox_id


def test_ids_are_what_a_host_name_can_carry_and_do_not_repeat() -> None:
    made = {new_sandbox_id() for _ in range(500)}
    assert len(made) == 500
    assert all(re.fullmatch("i[a-z0-9]{20}", name) for name in made)


def test_tokens_are_64_hex_digits() -> None:
    assert re.fullmatch("[0-9a-f]{64}", new_token())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("i2345", "i2345"),
        ("nonexistingsandbox", "nonexistingsandbox"),
        ("i2345-6532622b", "i2345"),
        ("i2345-", None),
        ("i2345-a-b", None),
        ("-abc", None),
        ("", None),
        ("I2345", None),
        ("i23/45", None),
        ("i2345\n", None),
        ("i" * 33, None),
    ],
)
def test_what_a_client_sends_is_an_id_with_perhaps_a_client_id(
    text: str, expected: str | None
) -> None:
    assert parse_sandbox_id(text) == expected
