"""A node that several use, and that runs short of things: through the official SDK."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.programs import PYTHON
from internet import UPSTREAM_DNS, Internet, namespaces
from internet.node import Node
from sandgate.store import Store

pytestmark = pytest.mark.timeout(120)

_ADDRESSES = 32 - 16 - 1
"""Of a /27, without the node's own and the last."""

_OWNERS = """
import json, os, subprocess, sys
from e2b import AuthenticationException, NotFoundException, RateLimitException, Sandbox
alice, bob = json.loads(os.environ["KEYS"])
mine = Sandbox.create(api_key=alice, timeout=60)
assert mine.commands.run("echo alice").stdout == "alice\\n"
try:
    Sandbox.create(api_key=alice)
except RateLimitException as error:
    print("quota:", error)
theirs = Sandbox.create(api_key=bob, timeout=60)
own = Sandbox.create(timeout=60)
for key, sandbox in ((alice, mine), (bob, theirs), (None, own)):
    options = {} if key is None else {"api_key": key}
    (listed,) = Sandbox.list(**options).next_items()
    assert listed.sandbox_id == sandbox.sandbox_id
    for other in (mine, theirs, own):
        if other is not sandbox:
            assert Sandbox.kill(other.sandbox_id, **options) is False
            try:
                Sandbox.connect(other.sandbox_id, **options)
                raise SystemExit("connected to another's sandbox")
            except NotFoundException:
                pass
revoked = subprocess.run(json.loads(os.environ["REVOKE"]), capture_output=True, text=True)
assert revoked.returncode == 0, revoked.stderr
try:
    Sandbox.list(api_key=bob).next_items()
except AuthenticationException:
    print("revoked: refused")
assert theirs.commands.run("echo goes on").stdout == "goes on\\n"
for options in ({"api_key": alice}, {}):
    for item in Sandbox.list(**options).next_items():
        Sandbox.kill(item.sandbox_id, **options)
"""

_FULL = """
import os, time
from e2b import RateLimitException, Sandbox, SandboxException
first = Sandbox.create(timeout=120)
os.posix_fallocate(fd := os.open(os.environ["FILLER"], os.O_RDWR | os.O_CREAT), 0, 140 << 20)
time.sleep(0.3)
try:
    Sandbox.create()
except SandboxException as error:
    print(error.status_code, error)
try:
    first.create_snapshot()
except SandboxException as error:
    print("snapshot", error.status_code)
assert first.commands.run("echo goes on").stdout == "goes on\\n"
os.ftruncate(fd, 0)
time.sleep(0.3)
made = [first]
try:
    for _ in range(20):
        made.append(Sandbox.create(timeout=120))
except RateLimitException as error:
    print(len(made), error)
assert first.commands.run("echo goes on").stdout == "goes on\\n"
for sandbox in made:
    sandbox.kill()
"""


def _python(node: Node, code: str, **environment: str) -> str:
    """Run `code` where the node runs, with what `sandgate env` says."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("E2B_")}
    assert node.namespace is not None
    with namespaces.inside(node.namespace):
        done = subprocess.run(
            [PYTHON, "-c", code],
            env=inherited | node.environment() | environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    assert done.returncode == 0, done.stderr + node.log_tail()
    return done.stdout


def test_owners_share_a_node_and_nothing_else(world: Internet) -> None:
    settings = {"upstream_dns": [UPSTREAM_DNS], "pool_size": 1}
    with Node(world.attach("owners"), settings) as node:
        limits = ("--max-sandboxes", "1")
        keys = [
            node.command("keys", "add", "alice", *limits).stdout.strip(),
            node.command("keys", "add", "bob").stdout.strip(),
        ]
        revoke = [str(Path(PYTHON).with_name("sandgate")), "keys", "revoke", "--owner", "bob"]
        said = _python(
            node,
            _OWNERS,
            KEYS=json.dumps(keys),
            REVOKE=json.dumps([*revoke, "--config", str(node.config)]),
        )
        assert "quota of 1 sandboxes" in said and "revoked: refused" in said
        assert not any(key[4:] in node.log_tail(1 << 20) for key in keys)
        archive = node.directory / "backup.tar"
        done = node.command("backup", str(archive))
        assert done.returncode == 0, done.stderr
        assert archive.stat().st_mode & 0o777 == 0o600
        restored = node.directory / "restored"
        restored.mkdir()
        namespaces.run("tar", "-xpf", str(archive), "-C", str(restored))
        for name in ("api_key", "keys.json", "certificates/ca.pem"):
            assert (restored / name).read_bytes() == (node.data_dir / name).read_bytes()
        assert (restored / "api_key").stat().st_mode & 0o777 == 0o600
        database = restored / "store" / "store.db"
        assert database.stat().st_uid == (node.data_dir / "store" / "store.db").stat().st_uid
        store = Store(database)
        assert [record.owner for record in store.all()] == ["bob"]
        store.close()
        left = node.stop()
    assert not left, "\n".join(left)


@pytest.fixture
def small(world: Internet) -> Iterator[Node]:
    """A node with few addresses, on a file system of 256 MiB."""
    settings = {
        "upstream_dns": [UPSTREAM_DNS],
        "address_range": "10.77.0.0/27",
        "disk_reserve_mb": 128,
        "disk_mb": 128,
        "memory_mb": 64,
        "pool_size": 0,
    }
    node = Node(world.attach("small"), settings)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256m,mode=755", "none", node.directory], check=True
    )
    try:
        with node:
            yield node
    finally:
        subprocess.run(["umount", "-l", node.directory], check=True)
        node.directory.rmdir()


def test_a_node_that_runs_short_refuses_creates_and_keeps_what_runs(small: Node) -> None:
    said = _python(small, _FULL, FILLER=str(small.data_dir / "filler"))
    full, snapshot, addresses = said.strip().splitlines()
    assert full.startswith("507 507: the node has no room: only ") and "disk_reserve_mb" in full
    assert snapshot == "snapshot 507"
    assert addresses.startswith(f"{_ADDRESSES} 429") and "set a wider address_range" in addresses
