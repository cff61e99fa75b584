"""Every public method of the installed SDK is called against a real node, in both flavours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from e2b import AsyncSandbox, CommandHandle, FileNotFoundException, Sandbox, WatchHandle
from e2b.sandbox_sync.commands.command import Commands
from e2b.sandbox_sync.commands.pty import Pty
from e2b.sandbox_sync.filesystem.filesystem import Filesystem
from e2b.sandbox_sync.git import Git

import sdk.conformance.__main__  # noqa: F401 - fills CHECKS
from sdk.conformance.base import CHECKS

_TESTS = Path(__file__).resolve().parents[1]
NOT_OFFERED = {"Template.build", "Volume.create", "Secret.create", "Sandbox.create(mcp)"}
"""Answered with 501. `docs/compatibility.md` says so."""

WITHOUT_CHECK = {
    "pty.send_stdin": "all checks of pty use it",
    "git.pull": "in the check of clone and push",
    "Sandbox.beta_pause": "another name of pause, tested below",
    "Sandbox.get_mcp_token": "MCP is not offered, tested below",
    "Sandbox.get_mcp_url": "makes a URL of the id, tested below",
    "CommandHandle.wait": "all checks of commands use it",
    "CommandHandle.send_stdin": "tested below",
    "CommandHandle.close_stdin": "tested below",
    "WatchHandle.get_new_events": "in the check of watch_dir",
    "WatchHandle.stop": "in the check of watch_dir",
}
CLASSES = {
    "Sandbox": Sandbox,
    "commands": Commands,
    "pty": Pty,
    "files": Filesystem,
    "git": Git,
    "CommandHandle": CommandHandle,
    "WatchHandle": WatchHandle,
}


def public_methods(name: str, owner: type) -> set[str]:
    """What may be called on an object, as `Class.method`."""
    return {
        f"{name}.{member}"
        for member in dir(owner)
        if not member.startswith("_") and callable(getattr(owner, member))
    }


def checked() -> set[str]:
    """What the checks say that they call."""
    found = set()
    for check in CHECKS:
        owner, _, methods = re.sub(r"\(.*\)", "", check).partition(".")
        found |= {f"{owner}.{method.strip()}" for method in methods.split(",")}
    return found


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_method_has_a_check(name: str) -> None:
    methods = public_methods(name, CLASSES[name])
    assert methods - checked() - WITHOUT_CHECK.keys() == set()


def test_both_flavours_have_the_same_methods() -> None:
    assert public_methods("Sandbox", Sandbox) == public_methods("Sandbox", AsyncSandbox)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_every_check_works_or_is_not_offered(node: object, flavour: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sdk.conformance", flavour],
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    outcomes = {line["method"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert outcomes.keys() == CHECKS.keys(), done.stderr
    failed = [line for line in outcomes.values() if line["outcome"] not in ("works", "refused")]
    assert failed == []
    refused = {name for name, line in outcomes.items() if line["outcome"] == "refused"}
    assert refused == NOT_OFFERED


def test_methods_that_have_no_check(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes()
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    handle.send_stdin("some text\n")
    handle.close_stdin()
    assert handle.wait().stdout == "some text\n"
    host = f"50005-{sandbox.sandbox_id}.{os.environ['E2B_DOMAIN']}"
    assert sandbox.get_mcp_url() == f"https://{host}/mcp"
    with pytest.raises(FileNotFoundException, match="mcp-gateway"):
        sandbox.get_mcp_token()
    sandbox.beta_pause()
    assert not sandbox.is_running()
    Sandbox.connect(sandbox.sandbox_id)
