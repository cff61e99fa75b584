"""The machine loses its power, and boots again."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from faults.conftest import Client, until
from faults.machine import Machine
from internet import Internet
from sandgate.policy import EgressPolicy
from sandgate.supervisor.processes import ProcessId

_HERE = Path(__file__).parent
_ROUNDS = 12
_KEPT = "/home/user/kept"
_ECHO = "1.1.1.1"
_CLOSED = {"allow_out": [_ECHO], "deny_out": ["0.0.0.0/0"]}


@pytest.fixture
def machine(world: Internet) -> Iterator[Machine]:
    with Machine(world, {"pool_size": 1}) as machine:
        yield machine


@contextmanager
def client_of(machine: Machine) -> Iterator[Client]:
    client = Client(machine.node)
    try:
        yield client
    finally:
        client.close()


def _id(client: Client, label: str) -> str:
    name: str = client("facts")[label][0]
    return name


def _status(client: Client, name: str) -> tuple[int, str]:
    status, body = client("get", f"/sandboxes/{name}")
    return status, body.get("message", body.get("state", ""))


@contextmanager
def _namesake(machine: Machine, sandbox_id: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the next boot that a record of the last one seems to tell of."""
    other = subprocess.Popen(["sleep", "600"])
    try:
        process = ProcessId.of(other.pid)
        assert process is not None
        told = {
            **{"boot": process.boot, "pid": process.pid, "started": process.start},
            **{"sandbox_id": sandbox_id, "policy": EgressPolicy().to_json(), "paused": False},
        }
        with machine.disk_inserted():
            records = machine.node.data_dir / "cells"
            (records / "200.json").write_text(json.dumps(told))
            # As file systems leave a file that was not synced.
            (records / "201.json").write_text("")
        yield other
    finally:
        other.kill()
        other.wait()


@pytest.mark.timeout(180)
def test_after_a_reboot_what_was_paused_to_disk_is_there_and_the_rest_is_reported(
    machine: Machine, world: Internet
) -> None:
    node = machine.node
    keys = [node.command("keys", "add", f"owner{index}").stdout.strip() for index in range(2)]
    ids = _keys(machine)
    text = os.urandom(200_000).hex()
    with client_of(machine) as client:
        names: dict[str, str] = {}
        for label in ("runs", "files", "memory", "source"):
            names[label] = client("create", label, text, {} if label == "runs" else _CLOSED)
        client("run", "source", "cp /home/user/inside.py /home/user/copied")
        snapshot = client("snapshot", "source")
        client("pause", "memory", "full")
        before = client("facts")
        client("pause", "files", "filesystem")
        assert node.command("keys", "revoke", ids[0]).returncode == 0
    # Not a moment later: what was answered counts.
    machine.lose_power()
    with _namesake(machine, names["runs"]) as other:
        machine.start()
        assert other.poll() is None, "a process that only has the pid was killed"
    world.reset()
    with client_of(machine) as client:
        facts = client("facts")
        assert list(facts) == ["files"]
        assert facts["files"][0] == before["files"][0]
        for label, why in (
            ("runs", "the machine was restarted"),
            ("source", "the machine was restarted"),
            ("memory", "the machine was restarted, which a pause that keeps memory"),
        ):
            status, message = _status(client, names[label])
            assert status == 404 and f"{names[label]} not found: {why}" in message, message
        client("connect", "files", names["files"])
        assert client("read", "files", "/home/user/inside.py") == text
        probe = "curl -s -m 2 http://{}/ >/dev/null && echo open || echo shut"
        assert client("run", "files", probe.format(_ECHO)) == "open\n"
        assert client("run", "files", probe.format("8.8.4.4")) == "shut\n"
        client("copy", "copy", snapshot)
        assert client("read", "copy", "/home/user/copied") == text
        client("create", "new", "", {})
        assert client("run", "new", "echo works") == "works\n"
        for label in ("files", "copy", "new"):
            client("kill", label)
    assert not world.contacts(destination="8.8.4.4")
    assert _keys(machine) == ids[1:] and keys[0] != keys[1]
    doctor = node.command("doctor", "--leaks", "--json")
    assert doctor.returncode == 0, doctor.stdout
    log = node.log_tail(1 << 20)
    assert "is damaged" in log and "Traceback" not in log, log[-4000:]


def _keys(machine: Machine) -> list[str]:
    """The ids of the owners' keys that are good."""
    rows = json.loads(machine.node.command("keys", "list", "--json").stdout)
    return [
        key["key_id"] for row in rows if row["owner"].startswith("owner") for key in row["keys"]
    ]


def _power_cuts(rounds: int, machine: Machine) -> dict[str, int]:
    """Each in the middle of writing; how much was promised, and kept."""
    kept: dict[str, int] = {}
    for turn in range(rounds):
        with client_of(machine) as client:
            wanted = _disks(machine) + 3 + turn % 5
            client("promise")
            until(lambda wanted=wanted: _disks(machine) >= wanted, 60, "pauses")
            machine.lose_power()
            promised = client("promised")
        machine.start()
        with client_of(machine) as client:
            for kind, count in client("check", promised, 6).items():
                kept[kind] = kept.get(kind, 0) + count
            for name, _, _ in client("facts").values():
                assert client("get", f"/sandboxes/{name}")[0] == 200
        _check_database(machine)
        doctor = machine.node.command("doctor", "--leaks", "--json")
        assert doctor.returncode == 0, doctor.stdout
    return kept


def _disks(machine: Machine) -> int:
    return len(list((machine.node.data_dir / "disks").glob("*.img")))


def _check_database(machine: Machine) -> None:
    for name in ("store.db", "decisions.db"):
        path = machine.node.data_dir / "store" / name
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_power_cuts_in_the_middle_of_writing_undo_nothing_that_was_answered(
    machine: Machine,
) -> None:
    kept = _power_cuts(_ROUNDS, machine)
    print(f"{_ROUNDS} power cuts; promised, and kept: {kept}")
    assert kept["paused"] > _ROUNDS and kept["snapshots"] > _ROUNDS / 2 and kept["gone"] > 0
