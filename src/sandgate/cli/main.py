"""The commands. Each loads what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from pathlib import Path

import click

from sandgate.cli.environment import client_environment, exports, misleading, proxies
from sandgate.cli.keys import keys
from sandgate.cli.net import net
from sandgate.cli.options import (
    NOT_RUNNING,
    NotRunning,
    config_option,
    reported_errors,
    settings_from,
)
from sandgate.cli.service import install, uninstall
from sandgate.cli.trust import given_up
from sandgate.templates.cli import template


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sandgate", prog_name="sandgate")
def main() -> None:
    """Sandboxes for untrusted code on this machine, with both network gates under control."""


main.add_command(install)
main.add_command(keys)
main.add_command(net)
main.add_command(template)
main.add_command(uninstall)


@main.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the node in the foreground, until SIGTERM or Ctrl-C ends it and all its sandboxes."""
    from sandgate.supervisor.node import serve as run

    settings = settings_from(config)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s supervisor %(levelname)s %(message)s",
    )
    with reported_errors():
        run(settings)


@main.command()
@config_option
@click.option("--restart", is_flag=True, help="Replace the processes of a node that runs.")
def up(config: Path | None, restart: bool) -> None:
    """Start the node in the background and wait until it is ready.

    If another version (or copy) of Sandgate runs it, this one replaces it, process by process;
    so does --restart with the same one, for changed settings. Sandboxes go on.
    """
    from sandgate.supervisor.background import Outcome, start

    settings = settings_from(config)
    before = time.monotonic()
    with reported_errors():
        status, outcome = start(settings, config, restart=restart)
    if status.record is None:
        raise click.ClickException("the node ended just after its start")
    how = str(outcome)
    if outcome is not Outcome.WAS_UP:
        how += f" after {time.monotonic() - before:.1f} s"
    click.echo(f"sandgate {status.record.version} {how}: https://api.{status.record.domain}")


@main.command()
@config_option
def down(config: Path | None) -> None:
    """Stop the node and all its sandboxes."""
    from sandgate.supervisor.background import stop

    settings = settings_from(config)
    with reported_errors():
        stopped = stop(settings, config)
    click.echo("sandgate is down" if stopped else "sandgate was not running")


@main.command()
@config_option
@click.option("--wait", type=click.FloatRange(min=0), default=0, help="Seconds to wait for ready.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(config: Path | None, wait: float, as_json: bool) -> None:
    """Say how the node is. Exit status: 0 ready, 1 runs but is not ready, 3 does not run."""
    from sandgate.cli.display import show_status, status_data
    from sandgate.supervisor.status import State, wait_until_ready

    settings = settings_from(config)
    with reported_errors():
        found = wait_until_ready(settings, wait)
    data = status_data(settings, found)
    if as_json:
        click.echo(json.dumps(data, indent=1))
    else:
        show_status(data)
    sys.exit({State.READY: 0, State.NOT_READY: 1, State.STOPPED: NOT_RUNNING}[found.state])


@main.command()
@config_option
def env(config: Path | None) -> None:
    """Print shell exports for the official SDKs: eval "$(sandgate env)"."""
    from sandgate.supervisor.layout import Layout
    from sandgate.supervisor.record import running_node

    settings = settings_from(config)
    layout = Layout.of(settings)
    with reported_errors():
        _, record = running_node(layout)
        if record is None:
            raise NotRunning(
                f"no node runs in {settings.data_dir}; start it with `sandgate up` first"
            )
        variables = client_environment(record, layout.read_api_key(), os.environ)
    if "NO_PROXY" in variables or "no_proxy" in variables:
        click.echo(
            f"warning: {', '.join(proxies(os.environ))} is set; NO_PROXY is extended, so that "
            f"*.{record.host} is reached directly",
            err=True,
        )
    for name in given_up(variables, os.environ):
        click.echo(
            f"warning: {name}={os.environ[name]} is replaced by {variables[name]}, which lacks "
            "some of its certificates; to keep them, add them to the system's store "
            "(update-ca-certificates) and restart the node",
            err=True,
        )
    for name in misleading(os.environ):
        click.echo(
            f"warning: {name} is set and would keep the SDKs from using this node; unset {name}",
            err=True,
        )
    click.echo(exports(variables), nl=False)


@main.command()
@config_option
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def backup(config: Path | None, file: Path) -> None:
    """Write database, keys and certificates to FILE (tar); the node may run.

    To restore: `sandgate down`, extract it in data_dir as root (tar -xpf FILE -C data_dir), and
    start the node.
    """
    from sandgate.supervisor.background import require_root
    from sandgate.supervisor.backup import write_backup

    settings = settings_from(config)
    with reported_errors():
        require_root("a backup")
        names = write_backup(settings, file.absolute())
    click.echo(f"{file}: {', '.join(names)}")


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--leaks", is_flag=True, help="Look for what a crash left instead.")
@click.option("--fix", is_flag=True, help="With --leaks: remove it.")
def doctor(config: Path | None, as_json: bool, leaks: bool, fix: bool) -> None:
    """Check that this machine can run a node, and say how to repair what is wrong."""
    from sandgate.cli.doctor import examine, report

    settings = settings_from(config)
    if fix and not leaks:
        raise click.UsageError("--fix goes with --leaks")
    if leaks:
        from sandgate.cli.leaks import look

        with reported_errors():
            sys.exit(look(settings, fix=fix, as_json=as_json))
    findings = examine(settings)
    sys.exit(report(findings, as_json=as_json))
