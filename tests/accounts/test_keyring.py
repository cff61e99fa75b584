"""Who a key stands for, while the file of keys changes."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sandgate.accounts import (
    OPERATOR,
    AccountError,
    Caller,
    KeyEntry,
    KeyRejected,
    Quota,
    hash_key,
    new_key,
)
from sandgate.accounts.keyfile import read_owners, update_owners
from sandgate.accounts.keyring import KeyRing

OWN = new_key()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the keys are; no file yet."""
    return tmp_path / "keys.json"


def add(path: Path, owner: str, **quota: float | None) -> str:
    """A new key of `owner`."""
    key = new_key()
    entry = KeyEntry(key_hash=hash_key(key), created_at=datetime.now(UTC))
    update_owners(path, os.getgid(), lambda owners: owners.with_key(owner, entry, quota))
    return key


def test_keys_are_good_from_when_they_are_added_until_they_are_revoked(path: Path) -> None:
    ring = KeyRing(hash_key(OWN), path)
    assert ring.identify(OWN) == Caller(OPERATOR) and ring.identify(OWN).is_operator
    for _ in range(3):
        key = add(path, "alice", max_sandboxes=2)
        assert ring.identify(key) == Caller("alice", Quota(max_sandboxes=2))
        assert not ring.identify(key).is_operator
        update_owners(path, os.getgid(), lambda owners: owners.without_keys_of("alice"))
        with pytest.raises(KeyRejected, match="not this node's"):
            ring.identify(key)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, "missing"),
        ("", "missing"),
        ("e2b_", "malformed"),
        (OWN.upper(), "malformed"),
        (f"{OWN}0", "malformed"),
        (f"{OWN}\n", "malformed"),
        (new_key(), "not this node's"),
    ],
)
def test_what_is_no_key_of_the_node_is_rejected(path: Path, key: str | None, why: str) -> None:
    add(path, "alice")
    with pytest.raises(KeyRejected, match=why):
        KeyRing(hash_key(OWN), path).identify(key)


@pytest.mark.parametrize("content", ["", "{", '{"owners": {"a": 1}}', '{"version": 9}'])
def test_with_a_damaged_file_only_the_operator_gets_in(path: Path, content: str) -> None:
    ring = KeyRing(hash_key(OWN), path)
    key = add(path, "alice")
    assert ring.identify(key).owner == "alice"
    path.write_text(content)
    with pytest.raises(KeyRejected):
        ring.identify(key)
    assert ring.identify(OWN).is_operator
    with pytest.raises(AccountError, match="damaged"):
        add(path, "bob")
    assert path.read_text() == content


def test_the_file_is_roots_and_its_groups_alone(path: Path) -> None:
    add(path, "alice")
    found = path.stat()
    assert stat.S_IMODE(found.st_mode) == 0o640
    assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
    assert [item.name for item in path.parent.iterdir() if item.name != path.name] == [
        ".keys.json.lock"
    ]


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: add(path, f"owner{number % 4}"), range(24)))
    assert read_owners(path).callers().keys() == {hash_key(key) for key in keys}
