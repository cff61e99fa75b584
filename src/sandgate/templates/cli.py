"""The `template` commands, used by `sandgate template` and `python -m sandgate.templates`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType

import click

from sandgate.settings import Settings, SettingsError, load_settings
from sandgate.templates.build import build
from sandgate.templates.definition import TemplateError, load_definitions
from sandgate.templates.progress import ConsoleReporter
from sandgate.templates.root import enter_private_mount_namespace
from sandgate.templates.store import read_manifests, templates_dir

_config = click.option(
    "--config",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Settings file of the node. Default: /etc/sandgate/config.toml if it exists.",
)


@click.group(name="template")
def template() -> None:
    """Root file systems that sandboxes start from."""


@template.command(name="build")
@_config
@click.option("--force", is_flag=True, help="Build also what is up to date.")
@click.argument("names", nargs=-1)
def build_command(config: Path | None, force: bool, names: tuple[str, ...]) -> None:
    """Build the templates NAMES (all, if none is named) where missing or out of date."""
    settings = _settings(config)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        definitions = load_definitions()
        enter_private_mount_namespace()
        with ConsoleReporter() as reporter:
            build(
                settings.data_dir,
                definitions,
                names or tuple(definitions),
                reporter,
                mirror=settings.debian_mirror,
                force=force,
            )
    except TemplateError as error:
        raise click.ClickException(str(error)) from error
    except PermissionError as error:
        raise click.ClickException(f"{error}; building templates needs root") from error


@template.command(name="list")
@_config
def list_command(config: Path | None) -> None:
    """List the built templates."""
    settings = _settings(config)
    try:
        manifests = read_manifests(settings.data_dir)
    except TemplateError as error:
        raise click.ClickException(str(error)) from error
    for manifest in manifests.values():
        path = templates_dir(settings.data_dir) / manifest.name / "rootfs"
        click.echo(
            f"{manifest.name:24} {manifest.size_bytes / 1e6:8.1f} MB  {manifest.built_at}  {path}"
        )
    if not manifests:
        click.echo("No template is built; run `sandgate template build`.", err=True)


def _settings(config: Path | None) -> Settings:
    try:
        return load_settings(config)
    except (FileNotFoundError, SettingsError) as error:
        raise click.ClickException(str(error)) from error


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """End as Ctrl-C does, so that half a build is cleared away."""
    raise KeyboardInterrupt
