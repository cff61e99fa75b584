"""`sandgate net`: what sandboxes do on the network, and what they may do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from sandgate.cli.client import Api, local_api, sandbox_path
from sandgate.cli.options import config_option, reported_errors, settings_from
from sandgate.decisions.suggest import Seen, suggest

_UNITS = ("B", "kB", "MB", "GB", "TB")


@click.group()
def net() -> None:
    """What a sandbox does on the network, and what it may do."""


@net.command()
@config_option
@click.argument("sandbox_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object a line.")
def tail(config: Path | None, sandbox_id: str, as_json: bool) -> None:
    """Show what is decided for the traffic of a sandbox, live, until it ends or Ctrl-C."""
    with reported_errors(), local_api(settings_from(config)) as api:
        for kind, data in api.events(sandbox_path(sandbox_id, "network/decisions")):
            if kind == "missed":
                click.echo(f"{data['missed']} more came too fast to be shown", err=True)
            elif kind == "decision":
                click.echo(json.dumps(data) if as_json else readable(data))


@net.command()
@config_option
@click.argument("sandbox_id", metavar="ID")
@click.argument("target", metavar="URL")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def explain(config: Path | None, sandbox_id: str, target: str, as_json: bool) -> None:
    """Would a connection of the sandbox pass, and by which rule? Nothing is connected to.

    URL is https://example.com, tcp://db.example.com:5432, udp://1.1.1.1:53 or icmp://1.1.1.1.
    """
    with reported_errors(), local_api(settings_from(config)) as api:
        found = api.get(sandbox_path(sandbox_id, "network/explain"), target=target)
    click.echo(json.dumps(found) if as_json else explained(found))


@net.command(name="suggest")
@config_option
@click.argument("sandbox_id", metavar="ID")
@click.option("--wildcards", is_flag=True, help="One `*.` entry for names with the same parent.")
@click.option("--passed", is_flag=True, help="Leave out what was refused.")
@click.option("--json", "as_json", is_flag=True, help="The JSON alone.")
def suggest_command(
    config: Path | None, sandbox_id: str, wildcards: bool, passed: bool, as_json: bool
) -> None:
    """Print the smallest policy that covers what a sandbox was seen to do, to be pasted.

    What was refused is covered too, unless it is always denied: look at it before you paste.
    """
    with reported_errors(), local_api(settings_from(config)) as api:
        rows = list(_all_rows(api, sandbox_id))
    seen = [Seen.of(row) for row in rows]
    found = suggest(seen, wildcards=wildcards, passed=passed)
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
        return
    click.echo(f"# Python\n{found.as_python()}\n\n# JSON\n{json.dumps(found.as_json(), indent=1)}")
    beyond = sum(not item.coverable for item in seen)
    if beyond:
        click.echo(f"\n{beyond} kinds of traffic were refused that no policy allows", err=True)


@net.command()
@config_option
@click.argument("sandbox_id", metavar="ID")
@click.argument("state", type=click.Choice(["on", "off"]))
def report(config: Path | None, sandbox_id: str, state: str) -> None:
    """Let everything pass that is not always denied, and record what would be refused; or stop."""
    mode = "report" if state == "on" else "enforce"
    with reported_errors(), local_api(settings_from(config)) as api:
        api.patch(sandbox_path(sandbox_id, "network"), {"mode": mode})
    click.echo(f"the policy of {sandbox_id} {'is only reported' if state == 'on' else 'holds'}")


def explained(found: Mapping[str, Any]) -> str:
    """An explanation as one line."""
    verdict = "allow" if found["verdict"] == "allow" else "deny"
    if found["reported"]:
        verdict = "report: it passes, and would be refused"
    rule = "" if found["rule"] is None else f" by {found['rule']}"
    where = f" ({found['destination']})" if found["name"] and found["destination"] else ""
    return f"{verdict}: {found['reason']}{rule}, decided by the {found['path']}{where}"


def readable(row: Mapping[str, Any]) -> str:
    """A decision as one line."""
    moment = datetime.fromisoformat(row["time"]).astimezone()
    where = str(row["destination"])
    if row["port"]:
        where = f"{where}:{row['port']}"
    if row["name"] is not None:
        where = f"{_printable(row['name'])} ({where})"
    verdict = "report" if row["reported"] else row["verdict"]
    parts = [
        moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03}",
        f"{verdict:6}",
        f"{row['protocol']:4}",
        where,
        row["reason"],
    ]
    if row["rule"] is not None:
        parts.append(f"by {row['rule']}")
    if row["count"] > 1:
        parts.append(f"x{row['count']}")
    if row["bytesSent"] or row["bytesReceived"] or not row["count"]:
        sent, received = _size(row["bytesSent"]), _size(row["bytesReceived"])
        ended = "" if row["count"] else "ended: "
        parts.append(f"{ended}{sent} sent, {received} received in {row['durationMs'] / 1000:.1f} s")
    return "  ".join(parts)


def _all_rows(api: Api, sandbox_id: str) -> Iterator[Mapping[str, Any]]:
    path, query = sandbox_path(sandbox_id, "network/decisions"), {"limit": "1000"}
    while True:
        page, token = api.page(path, **query)
        yield from page["decisions"]
        if token is None:
            return
        query["nextToken"] = token


def _printable(name: str) -> str:
    """What a sandbox sent must not move the cursor of whoever reads it."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in name)


def _size(count: int) -> str:
    size = float(count)
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
