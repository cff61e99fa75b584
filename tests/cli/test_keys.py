"""`sandgate keys`, without a node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandgate.accounts import hash_key, is_key, key_id
from sandgate.accounts.keyfile import read_owners

Run = Callable[..., subprocess.CompletedProcess[str]]


def owners(run: Run) -> dict[str, list[str]]:
    """The ids of the keys, by owner."""
    rows = json.loads(run("keys", "list", "--json").stdout)
    return {row["owner"]: [key["key_id"] for key in row["keys"]] for row in rows}


def refused(done: subprocess.CompletedProcess[str], words: str) -> None:
    assert done.returncode != 0 and words in done.stderr, done.stdout + done.stderr


def test_a_key_is_printed_once_and_kept_as_a_hash(run: Run, tmp_path: Path) -> None:
    done = run("keys", "add", "alice", "--max-sandboxes", "3")
    key = done.stdout.strip()
    assert done.returncode == 0 and is_key(key) and key not in done.stderr
    path = tmp_path / "data" / "keys.json"
    assert key[4:] not in path.read_text() and list(read_owners(path).callers()) == [hash_key(key)]
    assert owners(run) == {"operator": [], "alice": [key_id(hash_key(key))]}
    shown = run("keys", "list").stdout
    assert "alice: max_sandboxes 3" in shown and key[4:] not in shown


def test_keys_are_revoked_by_id_or_by_owner(run: Run) -> None:
    keys = [run("keys", "add", name).stdout.strip() for name in ("alice", "alice", "bob")]
    first = key_id(hash_key(keys[0]))
    assert run("keys", "revoke", first).returncode == 0
    assert owners(run)["alice"] == [key_id(hash_key(keys[1]))]
    assert run("keys", "revoke", "--owner", "alice").returncode == 0
    assert owners(run) == {"operator": [], "alice": [], "bob": [key_id(hash_key(keys[2]))]}
    refused(run("keys", "revoke", first), f"no key '{first}'")
    refused(run("keys", "revoke", "--owner", "carol"), "no owner 'carol'")
    refused(run("keys", "revoke"), "either KEY_ID or --owner")


def test_limits_can_be_changed_later(run: Run) -> None:
    run("keys", "add", "alice", "--memory-mb", "2048")
    done = run("keys", "limit", "alice", "--creates-per-second", "0.5", "--memory-mb", "-1")
    assert done.stdout == "alice: creates_per_second 0.5\n"
    refused(run("keys", "limit", "alice", "--creates-per-second", "0"), "creates_per_second")
    refused(run("keys", "limit", "alice"), "say what to limit")
    refused(run("keys", "limit", "bob", "--memory-mb", "1"), "no owner 'bob'")


@pytest.mark.parametrize("name", ["operator", "A b", "../x"])
def test_a_name_that_cannot_be_is_refused(run: Run, tmp_path: Path, name: str) -> None:
    refused(run("keys", "add", name), "name" if name == "operator" else "invalid owner")
    assert not (tmp_path / "data" / "keys.json").exists()
