"""The API: keys, errors, lifetimes, listing, and a kill that leaves nothing."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
)

from e2e import front
from e2e.box import read, until
from internet import namespaces
from internet.node import Node


@pytest.mark.parametrize("key", ["", "x", "e2b_" + "0" * 40, "e2b_" + "g" * 40])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2/sandboxes"), ("POST", "/v2/sandboxes"), ("DELETE", "/sandboxes/x")],
)
def test_a_wrong_key_is_401_before_anything_else(
    node: object, key: str, method: str, path: str
) -> None:
    reply = front.api(method, path, None if method != "POST" else {"bad": 1}, key)
    assert reply.status == 401 and reply.json["code"] == 401 and reply.json["message"]


def test_the_sdk_says_that_a_key_is_wrong(node: object) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_the_nodes_key_has_the_format_of_e2b(node: object) -> None:
    assert re.fullmatch("e2b_[0-9a-f]{40}", os.environ["E2B_API_KEY"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/v2/sandboxes", {"templateID": "nosuch"}, 404),
        ("POST", "/v2/sandboxes", {}, 400),
        ("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 0}, 400),
        ("POST", "/v2/sandboxes", {"templateID": "base", "timeout": -5}, 400),
        ("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 10**9}, 400),
        ("POST", "/v2/sandboxes", {"templateID": "base", "timeout": "soon"}, 400),
        ("POST", "/v2/sandboxes", [], 400),
        ("GET", "/sandboxes/nonexistingsandbox", None, 404),
        ("DELETE", "/sandboxes/nonexistingsandbox", None, 404),
        ("POST", "/sandboxes/nonexistingsandbox/timeout", {"timeout": 5}, 404),
        ("POST", "/v2/sandboxes/nonexistingsandbox/connect", {}, 404),
        ("PUT", "/sandboxes/nonexistingsandbox/network", {}, 404),
        ("GET", "/no/such/route", None, 404),
        ("PATCH", "/v2/sandboxes", None, 405),
    ],
)
def test_every_error_is_json_with_code_and_message(
    node: object, method: str, path: str, body: object, status: int
) -> None:
    reply = front.api(method, path, body)
    assert reply.status == status, reply.text
    assert reply.json["code"] == status and isinstance(reply.json["message"], str)


@pytest.mark.parametrize("version", ["", "/v2"])
def test_a_sandbox_through_both_versions(node: object, version: str) -> None:
    body = {"templateID": "base", "timeout": 60, "metadata": {"made": "raw"}, "secure": True}
    made = front.api("POST", f"{version}/sandboxes", body)
    assert made.status == 201
    assert {"templateID", "sandboxID", "clientID", "envdVersion"} <= made.json.keys()
    name = made.json["sandboxID"]
    assert re.fullmatch("[a-z0-9]+", name)
    detail = front.api("GET", f"/sandboxes/{name}").json
    assert detail["state"] == "running" and detail["metadata"] == {"made": "raw"}
    connected = front.api("POST", f"{version}/sandboxes/{name}/connect", {"timeout": 60})
    assert connected.status == 200
    assert connected.json["envdAccessToken"] == made.json["envdAccessToken"]
    listed = [sandbox["sandboxID"] for sandbox in front.api("GET", f"{version}/sandboxes").json]
    assert name in listed
    assert front.api("DELETE", f"/sandboxes/{name}").status == 204
    assert front.api("DELETE", f"/sandboxes/{name}").status == 404


@pytest.mark.parametrize("template", [None, "base", "code-interpreter-v1"])
def test_templates(sandboxes: Callable[..., Sandbox], template: str | None) -> None:
    sandbox = sandboxes(template=template)
    assert sandbox.commands.run("python --version").stdout.startswith("Python 3")


async def test_the_async_sdk(node: object) -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    try:
        assert (await sandbox.commands.run("echo hello")).stdout == "hello\n"
    finally:
        assert await sandbox.kill()


def test_info_and_list(sandboxes: Callable[..., Sandbox]) -> None:
    first = sandboxes(metadata={"group": "a b&c=d", "n": "1"}, timeout=100)
    second = sandboxes(metadata={"group": "a b&c=d", "n": "2"}, timeout=100)
    info = first.get_info()
    assert info.metadata == {"group": "a b&c=d", "n": "1"}
    assert 90 < (info.end_at - datetime.now(UTC)).total_seconds() <= 100
    assert (info.cpu_count, info.memory_mb) == (1, 512)
    from e2b import SandboxQuery

    listed = Sandbox.list(SandboxQuery(metadata={"group": "a b&c=d"})).next_items()
    assert [item.sandbox_id for item in listed] == [second.sandbox_id, first.sandbox_id]
    pages = Sandbox.list(SandboxQuery(metadata={"group": "a b&c=d"}), limit=1)
    assert pages.next_items()[0].sandbox_id == second.sandbox_id and pages.has_next
    assert pages.next_items()[0].sandbox_id == first.sandbox_id and not pages.has_next


def test_a_sandbox_ends_at_its_timeout(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes(timeout=2)
    assert sandbox.is_running()
    started = time.monotonic()
    until(lambda: not sandbox.is_running())
    assert time.monotonic() - started > 0.5
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()
    assert sandbox.kill() is False


def test_set_timeout_lengthens_and_shortens(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes(timeout=3)
    sandbox.set_timeout(600)
    assert (sandbox.get_info().end_at - datetime.now(UTC)).total_seconds() > 500
    sandbox.set_timeout(1)
    until(lambda: not sandbox.is_running())


def test_connect_extends_and_never_shortens(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes(timeout=300)
    before = sandbox.get_info().end_at
    same = Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert same.get_info().end_at == before
    assert Sandbox.connect(sandbox.sandbox_id, timeout=900).get_info().end_at > before
    assert same.commands.run("echo same").stdout == "same\n"


def test_kill_says_whether_there_was_anything_to_kill(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes()
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert Sandbox.kill("nonexistingsandbox") is False
    with pytest.raises(SandboxNotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    with pytest.raises(SandboxException):
        sandbox.commands.run("true")


def test_kill_leaves_nothing_behind(node: Node, sandboxes: Callable[..., Sandbox]) -> None:
    before = _footprint(node)
    while (now := _footprint(node)) != before:  # until the pool is full
        before = now
        time.sleep(0.5)
    for _ in range(3):
        made = [sandboxes(), sandboxes(network={"allow_public_traffic": False})]
        for sandbox in made:
            sandbox.commands.run("sleep 1000", background=True)
            sandbox.commands.run("sudo setsid sleep 1000 >/dev/null 2>&1 &")
            sandbox.files.write("/home/user/big", b"x" * 5_000_000)
        assert _footprint(node) != before
        for sandbox in made:
            sandbox.kill()
    end = time.monotonic() + 15
    while (after := _footprint(node)) != before and time.monotonic() < end:
        time.sleep(0.2)
    assert after == before


def _footprint(node: Node) -> dict[str, object]:
    """What the machine holds for a node; the same whenever its pool is full and nothing runs."""
    processes = node.processes()
    data_dir = str(node.data_dir)
    mounts = read(Path("/proc/self/mountinfo")).splitlines()
    backing = [read(path) for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    return {
        "processes": len(processes),
        "namespaces": {
            kind: len({_namespace(process, kind) for process in processes})
            for kind in ("net", "mnt", "pid", "ipc", "uts", "cgroup", "user")
        },
        "cgroups": sum(node.node_id in name for name, _, _ in os.walk("/sys/fs/cgroup")),
        "loop devices": sum(data_dir in path for path in backing),
        "mounts": sum(data_dir in line for line in mounts),
        "links": len(namespaces.run("ip", "-brief", "link").splitlines()),
        "routes": len(namespaces.run("ip", "route", "show", "table", "all").splitlines()),
        "firewall": len(namespaces.run("nft", "list", "ruleset").splitlines()),
        "files": sum(1 for _ in node.data_dir.rglob("*")),
    }


def _namespace(process: int, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{process}/ns/{kind}")
    except OSError:
        return "gone"
