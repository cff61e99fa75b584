"""`sandgate install` and `uninstall`: the node as a service of systemd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sandgate.cli.options import config_option, reported_errors, settings_from
from sandgate.cli.unit import UNIT, UnitPlan, render_unit
from sandgate.durable import replace_file
from sandgate.settings import CONFIG_VARIABLE, DEFAULT_CONFIG

_UNITS = Path("etc/systemd/system")
_RUNNING = Path("run/systemd/system")
"""Exists while systemd runs the machine (sd_booted(3))."""

_prefix_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--prefix",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/"),
    help="Directory to take for the machine's root, as for packages and images. Default: /",
)


@click.command()
@config_option
@_prefix_option
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@click.option("--now", is_flag=True, help="Enable and start it, too.")
def install(config: Path | None, prefix: Path, dry_run: bool, now: bool) -> None:
    """Make the node a service of systemd. Run it again after an upgrade."""
    settings = settings_from(config)
    command = [sys.executable, "-I", "-m", "sandgate", "serve"]
    if (named := _config_file(config)) is not None:
        command += ["--config", str(named)]
    plan = UnitPlan(tuple(command), settings.data_dir, Path(__file__).parents[3] / "docs")
    try:
        text = render_unit(plan)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    path = prefix.absolute() / _UNITS / UNIT
    if dry_run:
        click.echo(f"# {path}\n{text}", nl=False)
        return
    _require_usable(prefix, now=now)
    with reported_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode(), mode=0o644)
        # What it may write to must exist before it starts.
        if prefix == Path("/"):
            settings.data_dir.mkdir(parents=True, exist_ok=True)
    click.echo(f"written: {path}")
    if prefix != Path("/"):
        return
    _systemctl("daemon-reload")
    if now:
        _systemctl("enable", "--now", UNIT)
        click.echo("the service runs, and will after each boot")
    else:
        click.echo(
            f"start it now and at each boot: systemctl enable --now {UNIT}\n"
            f"if it runs already: systemctl restart {UNIT} (sandboxes go on)"
        )


@click.command()
@config_option
@_prefix_option
def uninstall(config: Path | None, prefix: Path) -> None:
    """End the service, its node and all sandboxes, and remove the unit. Data stays."""
    from sandgate.supervisor.background import stop

    settings = settings_from(config)
    path = prefix.absolute() / _UNITS / UNIT
    if not path.exists():
        raise click.ClickException(f"{path} is not there: nothing is installed")
    _require_usable(prefix, now=False)
    if prefix == Path("/"):
        _systemctl("disable", "--now", UNIT)
        with reported_errors():
            stop(settings, config)
    with reported_errors():
        path.unlink()
    if prefix == Path("/"):
        _systemctl("daemon-reload")
    click.echo(f"removed: {path}; the data in {settings.data_dir} stays")


def _config_file(config: Path | None) -> Path | None:
    """The file that the settings come from; variables of this shell do not reach the service."""
    named = config or (Path(value) if (value := os.environ.get(CONFIG_VARIABLE)) else None)
    if named is None:
        return DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    return named.absolute()


def _require_usable(prefix: Path, *, now: bool) -> None:
    if prefix != Path("/"):
        if now:
            raise click.UsageError("--now goes with the machine itself, not with --prefix")
        return
    if os.geteuid() != 0:
        raise click.ClickException("installing a service needs root; use sudo")
    if not (prefix / _RUNNING).is_dir() or shutil.which("systemctl") is None:
        raise click.ClickException(
            "systemd does not run this machine; use `sandgate up`, or have your service manager "
            "run `sandgate serve` in the foreground (`--prefix DIR` writes the unit all the same)"
        )


def _systemctl(*arguments: str) -> None:
    done = subprocess.run(
        ["systemctl", *arguments], capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise click.ClickException(f"systemctl {' '.join(arguments)} failed: {said}")
