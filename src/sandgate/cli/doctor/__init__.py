"""`sandgate doctor`: a table of small checks, each with the exact remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import click
from rich.console import Console
from rich.text import Text

from sandgate.cli.doctor import machine, network, node
from sandgate.cli.doctor.finding import Check, Finding, Level, warn
from sandgate.settings import Settings

__all__ = ["CHECKS", "Finding", "Level", "examine", "report"]

CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("kernel", machine.kernel, False),
    ("privileges", machine.privileges, False),
    ("cgroups", machine.cgroups, True),
    ("user namespaces", machine.user_namespaces, True),
    ("disks", machine.disks, True),
    ("overlay", machine.overlay, True),
    ("open files", machine.open_files, False),
    ("disk space", machine.disk_space, False),
    ("nftables", network.nftables, True),
    ("other firewalls", network.other_firewalls, True),
    ("haproxy", network.haproxy, False),
    ("port", network.port, False),
    ("address range", network.address_range, True),
    ("resolvers", network.resolvers, False),
    ("names", network.name_resolution, False),
    ("service user", node.service_user, False),
    ("templates", node.templates, False),
    ("trust", node.certificate_trust, False),
)
"""Name, check, and whether only root can make it."""

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def examine(settings: Settings) -> list[tuple[str, Finding]]:
    """Make all checks, in order."""
    root = os.geteuid() == 0
    skipped = warn("not checked: needs root", "run `sudo sandgate doctor`")
    return [
        (name, check(settings) if root or not for_root else skipped)
        for name, check, for_root in CHECKS
    ]


def report(findings: Sequence[tuple[str, Finding]], *, as_json: bool) -> int:
    """Print the findings; the exit status: 1 if one is a failure, else 0."""
    if as_json:
        rows = [
            {"check": name, "level": item.level, "detail": item.detail, "fix": item.fix}
            for name, item in findings
        ]
        click.echo(json.dumps(rows, indent=1))
    else:
        console = Console(highlight=False, soft_wrap=True)
        width = max(len(name) for name, _ in findings)
        for name, item in findings:
            line = Text.assemble(
                (f"{item.level:4}", _STYLES[item.level]), f"  {name:{width}}  {item.detail}"
            )
            console.print(line)
            if item.fix:
                console.print(Text(f"{'':{width + 8}}fix: {item.fix}"))
    return int(any(item.level is Level.FAIL for _, item in findings))
