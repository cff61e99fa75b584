"""What a node has said that it keeps, and whether it did: runs in the client's process."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import asdict, dataclass, field
from typing import Any

from e2b import ALL_TRAFFIC, NotFoundException, Sandbox
from e2b.sandbox.sandbox_api import SandboxNetworkUpdate

_FILE = "/home/user/kept"
_THREADS = 2


@dataclass(slots=True)
class Ledger:
    """By id: what was answered with success. What was under way at the end is in none of them."""

    paused: dict[str, str] = field(default_factory=dict)
    """The content of the file."""
    policies: dict[str, list[str]] = field(default_factory=dict)
    """What it may reach."""
    snapshots: dict[str, str] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)
    """Ran at the end, or were ended."""


class Promises:
    """Pauses, resumes, changes and copies sandboxes until the node is gone."""

    def __init__(self) -> None:
        self._ledger = Ledger()
        self._threads: list[threading.Thread] = []
        self._over = threading.Event()

    def start(self) -> None:
        """Begin."""
        self._threads = [
            threading.Thread(target=self._work, args=(index,), daemon=True)
            for index in range(_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> dict[str, Any]:
        """Stop, and give what was promised."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
        return asdict(self._ledger)

    def _work(self, thread: int) -> None:
        with contextlib.suppress(Exception):  # the node is gone, whatever that makes the SDK raise
            turn = thread
            while not self._over.is_set():
                self._one(turn)
                turn += 1

    def _one(self, turn: int) -> None:
        ledger = self._ledger
        sandbox = Sandbox.create(timeout=3000, network={"deny_out": [ALL_TRAFFIC]})
        name, text = sandbox.sandbox_id, os.urandom(1 << (9 + turn % 9)).hex()
        sandbox.files.write(_FILE, text)
        if turn % 3 == 0:
            ledger.snapshots[sandbox.create_snapshot().snapshot_id] = text
        sandbox.pause(mode="filesystem")
        ledger.paused[name], ledger.policies[name] = text, []
        if turn % 4 == 1:
            del ledger.policies[name]
            allowed = [f"192.0.2.{turn % 250}"]
            change = SandboxNetworkUpdate(allow_out=allowed, deny_out=[ALL_TRAFFIC])
            sandbox.update_network(change)
            ledger.policies[name] = allowed
        elif turn % 4 == 2:
            del ledger.paused[name]
            del ledger.policies[name]
            sandbox.kill()
            ledger.gone.append(name)
        elif turn % 4 == 3:
            del ledger.paused[name]
            del ledger.policies[name]
            sandbox.connect(timeout=3000)
            ledger.gone.append(name)


def check(promised: dict[str, Any], *, most: int) -> dict[str, int]:
    """Ask another life of the node; `most` of each kind, the last ones. How many of each."""
    ledger = Ledger(**promised)
    for name, text in list(ledger.paused.items())[-most:]:
        info = Sandbox.get_info(name)
        assert str(info.state) in ("paused", "SandboxState.PAUSED"), info.state
        if name in ledger.policies:
            network = info.network or {}
            assert list(network.get("allow_out") or []) == ledger.policies[name], network
            assert network.get("deny_out") == [ALL_TRAFFIC], network
        sandbox = Sandbox.connect(name, timeout=600)
        assert sandbox.files.read(_FILE) == text, f"{name}: another content"
        sandbox.kill()
    for name, text in list(ledger.snapshots.items())[-most:]:
        with Sandbox.create(template=name) as copy:
            assert copy.files.read(_FILE) == text, f"{name}: another content"
    for name in ledger.gone:
        try:
            Sandbox.get_info(name)
        except NotFoundException:
            continue
        raise AssertionError(f"{name} is back")
    return {kind: len(items) for kind, items in asdict(ledger).items()}
