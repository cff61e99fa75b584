"""What the commands have in common: `--config`, and errors as one clear message."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from sandgate.accounts import AccountError
from sandgate.settings import Settings, SettingsError, load_settings
from sandgate.supervisor.background import NodeError
from sandgate.supervisor.backup import BackupError
from sandgate.supervisor.layout import LayoutError
from sandgate.supervisor.ports import PortError
from sandgate.supervisor.supervisor import StartError

NOT_RUNNING = 3
"""Exit status of a command that needs a running node (as service managers have it)."""

config_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file. Default: $SANDGATE_CONFIG, else /etc/sandgate/config.toml if it exists.",
)


class SettingsFailure(click.ClickException):
    """Settings that cannot be used."""

    exit_code = 2


class NotRunning(click.ClickException):
    """There is no node where one is needed."""

    exit_code = NOT_RUNNING


def settings_from(config: Path | None) -> Settings:
    """The settings, or a message for the user and exit status 2."""
    try:
        return load_settings(config)
    except (FileNotFoundError, SettingsError) as error:
        raise SettingsFailure(str(error)) from error


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns the errors that a user can do something about into a message and exit status 1."""
    try:
        yield
    except (AccountError, BackupError, NodeError, LayoutError, PortError, StartError) as error:
        raise click.ClickException(str(error)) from error
    except PermissionError as error:
        raise click.ClickException(f"{error.filename}: permission denied; use sudo") from error
    except OSError as error:
        raise click.ClickException(str(error)) from error
