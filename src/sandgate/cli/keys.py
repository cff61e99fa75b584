"""`sandgate keys`: who may use the node besides its operator."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sandgate.accounts import OPERATOR, AccountError, KeyEntry, Owners, hash_key, key_id, new_key
from sandgate.accounts.keyfile import read_owners, update_owners
from sandgate.cli.options import config_option, reported_errors, settings_from
from sandgate.settings import Settings

_QUOTA = {
    "max_sandboxes": (int, "Sandboxes at once, paused ones included."),
    "memory_mb": (int, "Memory limits of its sandboxes together, MiB."),
    "creates_per_second": (float, "Sandboxes created per second, on average."),
}


def _quota_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, (kind, text) in reversed(_QUOTA.items()):
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, name, type=kind, help=f"{text} -1: no limit.")(command)
    return command


@click.group()
def keys() -> None:
    """API keys of other owners. A change holds from the next request on."""


@keys.command()
@config_option
@click.argument("owner")
@_quota_options
def add(config: Path | None, owner: str, **quota: float | None) -> None:
    """Make a key for OWNER and print it, once: only its hash is kept.

    Owners see nothing of each other's sandboxes and snapshots. All keys of an owner share its
    quota; what is not given stays as it is, and is unlimited for a new owner.
    """
    key = new_key()
    entry = KeyEntry(key_hash=hash_key(key), created_at=datetime.now(UTC))
    _update(settings_from(config), lambda owners: owners.with_key(owner, entry, quota))
    click.echo(f"key {entry.key_id} of {owner}; it is shown only now:", err=True)
    click.echo(key)


@keys.command()
@config_option
@click.argument("owner")
@_quota_options
def limit(config: Path | None, owner: str, **quota: float | None) -> None:
    """Change what the sandboxes of OWNER may have together."""
    if all(value is None for value in quota.values()):
        raise click.UsageError("say what to limit, as in --max-sandboxes 10")
    owners = _update(settings_from(config), lambda owners: owners.with_quota(owner, quota))
    click.echo(f"{owner}: {_quota_text(owners.owners[owner].quota.model_dump())}")


@keys.command()
@config_option
@click.argument("key_id", required=False)
@click.option("--owner", help="Revoke all keys of this owner instead.")
def revoke(config: Path | None, key_id: str | None, owner: str | None) -> None:
    """Make the key KEY_ID (see `sandgate keys list`) good for nothing.

    Sandboxes of the owner live on until their time is over.
    """
    if (key_id is None) is (owner is None):
        raise click.UsageError("give either KEY_ID or --owner")
    settings = settings_from(config)
    if owner is not None:
        _update(settings, lambda owners: owners.without_keys_of(owner))
        click.echo(f"all keys of {owner} are revoked")
    elif key_id is not None:
        _update(settings, lambda owners: owners.without_key(_not_operators(settings, key_id)))
        click.echo(f"key {key_id} is revoked")


@keys.command(name="list")
@config_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(config: Path | None, as_json: bool) -> None:
    """List owners and the ids of their keys."""
    settings = settings_from(config)
    with reported_errors():
        rows = _rows(settings, read_owners(settings.key_file))
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['owner']}: {_quota_text(row['quota'])}")
        for key in row["keys"]:
            click.echo(f"  {key['key_id']}  {key['created_at'] or 'made at the first start'}")
        if not row["keys"]:
            click.echo("  no key")


def _update(settings: Settings, change: Callable[[Owners], Owners]) -> Owners:
    from sandgate.supervisor.background import require_root
    from sandgate.supervisor.layout import Layout, ServiceAccount

    with reported_errors():
        require_root("changing keys")
        account = ServiceAccount.of(settings.service_user)
        Layout.of(settings).prepare_data_dir()
        try:
            return update_owners(settings.key_file, account.gid, change)
        except AccountError:
            raise
        except ValueError as error:  # of a quota's values
            raise AccountError(f"invalid quota: {error}") from error


def _rows(settings: Settings, owners: Owners) -> list[dict[str, Any]]:
    own = _operator_id(settings)
    operator = {
        "owner": OPERATOR,
        "quota": dict.fromkeys(_QUOTA),
        "keys": [] if own is None else [{"key_id": own, "created_at": None}],
    }
    return [
        operator,
        *(
            {
                "owner": name,
                "quota": entry.quota.model_dump(),
                "keys": [
                    {
                        "key_id": key.key_id,
                        "created_at": key.created_at.isoformat(timespec="seconds"),
                    }
                    for key in entry.keys
                ],
            }
            for name, entry in sorted(owners.owners.items())
        ),
    ]


def _operator_id(settings: Settings) -> str | None:
    from sandgate.supervisor.layout import Layout

    layout = Layout.of(settings)
    return key_id(hash_key(layout.read_api_key())) if layout.api_key.exists() else None


def _not_operators(settings: Settings, wanted: str) -> str:
    if wanted == _operator_id(settings):
        raise AccountError(
            f"{wanted} is the operator's key: to change it, remove {settings.data_dir / 'api_key'} "
            "and restart the node"
        )
    return wanted


def _quota_text(quota: dict[str, float | None]) -> str:
    given = [f"{name} {value:g}" for name, value in quota.items() if value is not None]
    return ", ".join(given) or "no quota"
