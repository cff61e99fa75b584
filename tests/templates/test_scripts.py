"""The install scripts: which Python they take, and what they say when they cannot go on."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODERN, BARE, OLD = "modern", "without ensurepip", "old"


def _fake_python(folder: Path, name: str, kind: str) -> None:
    """A stand-in that answers the two questions the script asks of a Python."""
    asked = {MODERN: "exit 0", BARE: "case $2 in *ensurepip*) exit 1;; esac", OLD: "exit 1"}[kind]
    path = folder / name
    path.write_text(f"#!/bin/sh\n{asked}\n")
    path.chmod(0o755)


def _find_python(folder: Path, python: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", f". {SCRIPTS}/common.sh; find_python"],
        env={"PATH": f"{folder}:{_tools(folder)}", "PYTHON": python},
        capture_output=True,
        text=True,
        check=False,
    )


def _tools(folder: Path) -> Path:
    """A search path with what the script itself needs, and no Python."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("dirname", "mktemp"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    return tools


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ({"python3": MODERN, "python3.13": MODERN}, "python3"),
        ({"python3": OLD, "python3.11": MODERN}, "python3.11"),
        ({"python3": OLD, "python3.11": MODERN, "python3.13": MODERN}, "python3.13"),
        ({"python3": BARE, "python3.12": MODERN}, "python3.12"),
        ({"python3": BARE, "python3.12": BARE}, "python3"),
    ],
)
def test_the_first_python_that_is_new_enough_and_complete_is_taken(
    tmp_path: Path, there: dict[str, str], chosen: str
) -> None:
    for name, kind in there.items():
        _fake_python(tmp_path, name, kind)
    assert _find_python(tmp_path).stdout.strip() == str(tmp_path / chosen)


def test_a_python_that_is_named_is_the_only_one_considered(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", MODERN)
    _fake_python(tmp_path, "mine", OLD)
    result = _find_python(tmp_path, python=str(tmp_path / "mine"))
    assert result.returncode == 1
    assert f"no Python 3.11 or newer found as PYTHON={tmp_path}/mine" in result.stderr


def test_without_a_python_the_error_says_how_to_get_one(tmp_path: Path) -> None:
    _fake_python(tmp_path, "python3", OLD)
    result = _find_python(tmp_path)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "fix: install one" in result.stderr


def test_a_failing_command_shows_its_output_and_the_remedy() -> None:
    script = f". {SCRIPTS}/common.sh; quietly 'plug it in' ls /nowhere; echo not reached"
    result = subprocess.run(
        ["/bin/bash", "-c", script], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert "/nowhere" in result.stderr
    assert result.stderr.endswith("fix: plug it in\n")


def test_installing_without_root_says_so() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)  # pytest's own folders are closed to other accounts
        for script in ("common.sh", "install-system.sh"):
            (folder / script).write_text((SCRIPTS / script).read_text())
            (folder / script).chmod(0o644)
        result = subprocess.run(
            ["bash", str(folder / "install-system.sh")],
            env={"PATH": os.defpath, "MAKECMDGOALS": "demo"},
            user=65534,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 1
    assert "fix: run it again with sudo: sudo make demo" in result.stderr


@pytest.mark.parametrize(
    "script", [*sorted(SCRIPTS.glob("*.sh")), SCRIPTS.parent / ".ci/run"], ids=lambda p: p.name
)
def test_every_script_parses_and_stops_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    assert "set -euo pipefail" in text or '. "$(dirname "$0")/common.sh"' in text


def test_the_environment_has_node_and_npm_of_the_wheel() -> None:
    folder = Path(sys.executable).parent
    for name in ("node", "npm", "npx"):
        result = subprocess.run(
            [str(folder / name), "--version"],
            env={"PATH": f"{folder}:{os.defpath}", "HOME": "/nonexistent"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip().removeprefix("v")[0].isdigit()
