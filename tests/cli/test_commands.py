from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_version_and_help_need_no_node() -> None:
    for argument in ("--version", "--help"):
        done = subprocess.run(
            [Path(sys.executable).with_name("sandgate"), argument],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout
    assert done.stdout.count("sandgate") >= 1
    for command in ("serve", "up", "down", "status", "env", "doctor", "template"):
        assert f"\n  {command}" in done.stdout


def test_status_of_no_node_exits_3(run: Run) -> None:
    done = run("status")
    assert done.returncode == 3
    assert "not running" in done.stdout
    done = run("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)["state"] == "not running"


def test_waiting_for_no_node_ends_after_the_time_given(run: Run) -> None:
    assert run("status", "--wait", "0.3").returncode == 3


def test_env_of_no_node_prints_nothing_that_a_shell_would_evaluate(run: Run) -> None:
    done = run("env")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "sandgate up" in done.stderr


def test_down_without_a_node_is_no_error(run: Run) -> None:
    done = run("down")
    assert done.returncode == 0
    assert done.stdout == "sandgate was not running\n"


@pytest.mark.parametrize("command", ["serve", "up", "down", "status", "env", "doctor"])
def test_wrong_settings_are_one_message_without_a_traceback(
    run: Run, command: str, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text("htps_port = 1\n")
    done = run(command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "htps_port = 1: there is no such key" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_configuration_file_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.toml").unlink()
    done = run("status")
    assert done.returncode == 2
    assert f"{tmp_path}/config.toml does not exist" in done.stderr


@pytest.mark.parametrize("command", ["serve", "up"])
def test_starting_needs_root_and_says_so(tmp_path: Path, command: str) -> None:
    code = (
        "import os, sys; from sandgate.cli import main\n"
        "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
        f"main([{command!r}], prog_name='sandgate')"
    )
    # Everything that the command imports late, while root may still read it.
    code = "import sandgate.supervisor.node, sandgate.supervisor.background\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"SANDGATE_DATA_DIR": str(tmp_path / "data"), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 1, done.stderr
    assert "needs root; use sudo" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_start_that_fails_shows_why(run: Run, tmp_path: Path) -> None:
    done = run("up")
    assert done.returncode == 1
    assert "the node ended during its start" in done.stderr
    assert "no template `base`" in done.stderr
    assert "sandgate template build" in done.stderr
    assert not (tmp_path / "data" / "run").exists()
    assert run("status").returncode == 3


def test_serve_without_templates_fails_with_the_remedy(run: Run) -> None:
    done = run("serve")
    assert done.returncode == 1
    assert "no template `base`" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_service_user_fails_with_the_command_to_make_it(
    run: Run, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(config.read_text() + 'service_user = "nosuchuser"\n')
    done = run("serve")
    assert done.returncode == 1
    assert "useradd --system" in done.stderr
