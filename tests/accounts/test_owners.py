"""Owners as values: names, keys and quotas."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from sandgate.accounts import (
    NO_QUOTA,
    OPERATOR,
    AccountError,
    Caller,
    KeyEntry,
    Owners,
    Quota,
    hash_key,
    is_key,
    key_id,
    new_key,
)


def entry(key: str) -> KeyEntry:
    """What is kept of `key`."""
    return KeyEntry(key_hash=hash_key(key), created_at=datetime.now(UTC))


def test_a_key_is_what_the_sdks_accept_and_its_hash_is_all_that_is_kept() -> None:
    key = new_key()
    assert is_key(key) and key != new_key()
    owners = Owners().with_key("alice", entry(key), {})
    assert key not in owners.model_dump_json() and key[4:] not in owners.model_dump_json()
    assert owners.callers() == {hash_key(key): Caller("alice", NO_QUOTA)}


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", "a/b", "x" * 65, "ä", OPERATOR])
def test_a_name_that_nobody_can_have_is_refused(name: str) -> None:
    with pytest.raises(AccountError, match=r"another name|invalid owner"):
        Owners().with_key(name, entry(new_key()), {})


def test_a_quota_keeps_what_is_not_given_and_loses_what_is_negative() -> None:
    quota = NO_QUOTA.changed({"max_sandboxes": 3, "memory_mb": None, "creates_per_second": 0.5})
    assert quota == Quota(max_sandboxes=3, creates_per_second=0.5)
    assert quota.changed({"max_sandboxes": -1, "memory_mb": 512}) == Quota(
        memory_mb=512, creates_per_second=0.5
    )
    with pytest.raises(ValidationError):
        quota.changed({"creates_per_second": 0})


def test_keys_of_an_owner_share_its_quota_and_are_revoked_one_by_one() -> None:
    first, second = new_key(), new_key()
    owners = Owners().with_key("alice", entry(first), {"max_sandboxes": 1})
    owners = owners.with_key("alice", entry(second), {})
    assert {caller.quota.max_sandboxes for caller in owners.callers().values()} == {1}
    left = owners.without_key(key_id(hash_key(first)))
    assert list(left.callers()) == [hash_key(second)]
    assert left.with_quota("alice", {"max_sandboxes": 7}).owners["alice"].quota.max_sandboxes == 7
    none = left.without_keys_of("alice")
    assert none.callers() == {} and "alice" in none.owners
    with pytest.raises(AccountError, match="keys list"):
        left.without_key("abc")
    with pytest.raises(AccountError, match="keys list"):
        left.with_quota("bob", {})
