"""`sandgate install` and `uninstall`."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandgate.cli.unit import UNIT, UnitPlan, render_unit

Run = Callable[..., subprocess.CompletedProcess[str]]

_NO_SYSTEMD = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "--")
"""Runs a command where it cannot see whether systemd runs the machine."""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
@pytest.mark.parametrize("odd", ["plain", "a b%n$e;#"])
def test_systemd_understands_the_unit(tmp_path: Path, odd: str) -> None:
    """Warnings count too: unknown keys and values are no more than that."""
    program = tmp_path / odd / "python"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    path = tmp_path / UNIT
    plan = UnitPlan(
        (str(program), "serve", "--config", "a \"b\\c'"), tmp_path / odd, tmp_path / odd
    )
    path.write_text(render_unit(plan))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if UNIT in line]
    assert done.returncode == 0 and said == [], said


def test_a_restart_keeps_sandboxes_and_nothing_is_inherited_that_breaks_them() -> None:
    text = render_unit(UnitPlan(("/p", "serve"), Path("/d"), Path("/docs")))
    lines = text.splitlines()
    for line in ("Type=notify", "KillMode=process", "KillSignal=SIGUSR1", "Restart=on-failure"):
        assert line in lines
    assert "DevicePolicy=closed" in lines and "DeviceAllow=block-loop rw" in lines
    # Each of these loads a filter of system calls, or sets no_new_privs.
    filtering = (
        *("NoNewPrivileges", "SystemCall", "Restrict", "LockPersonality", "PrivateDevices"),
        *("ProtectKernel", "ProtectClock", "ProtectHostname", "MemoryDenyWriteExecute"),
    )
    assert not [line for line in lines if line.startswith(filtering)]


def test_a_path_that_no_unit_can_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="quotes in its path"):
        render_unit(UnitPlan(('/a"b',), Path("/d"), Path("/docs")))
    with pytest.raises(ValueError, match="line break"):
        render_unit(UnitPlan(("/a\nExecStartPre=/evil",), Path("/d"), Path("/docs")))


def test_a_dry_run_writes_nothing_and_prints_all(run: Run, tmp_path: Path) -> None:
    done = run("install", "--dry-run", "--prefix", str(tmp_path / "root"))
    assert done.returncode == 0 and not (tmp_path / "root").exists()
    assert f"# {tmp_path}/root/etc/systemd/system/{UNIT}" in done.stdout
    assert f"serve --config {tmp_path}/config.toml" in done.stdout
    assert f'ReadWritePaths="{tmp_path}/data"' in done.stdout


def test_below_a_prefix_the_unit_comes_and_goes(run: Run, tmp_path: Path) -> None:
    prefix = ("--prefix", str(tmp_path / "root"))
    assert run("install", *prefix).returncode == 0
    assert run("install", *prefix).returncode == 0
    unit = tmp_path / "root" / "etc" / "systemd" / "system" / UNIT
    assert "ExecStart=" in unit.read_text() and unit.stat().st_mode & 0o777 == 0o644
    assert run("uninstall", *prefix).returncode == 0
    assert not unit.exists() and list(unit.parent.iterdir()) == []
    done = run("uninstall", *prefix)
    assert done.returncode == 1 and "nothing is installed" in done.stderr
    assert run("install", "--now", *prefix).returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_without_systemd_it_is_said_what_else_there_is(run: Run) -> None:
    done = run("install", prefix=_NO_SYSTEMD)
    assert done.returncode == 1
    assert "systemd does not run this machine; use `sandgate up`" in done.stderr
    assert not Path("/etc/systemd/system", UNIT).exists()
