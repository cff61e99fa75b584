"""What was measured, as rows; printed, written as Markdown, drawn as SVG."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

_WIDTH, _BAR, _GAP, _LEFT = 760, 16, 8, 300


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: Sequence[float]) -> float:
    """Half of `values` are below it."""
    return statistics.median(values)


@dataclass(frozen=True, slots=True)
class Row:
    """One measure."""

    name: str
    value: float
    unit: str
    reach: float | None = None
    """What is aimed at."""
    at_most: bool = True
    """Whether less is better."""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the aim was reached in this run."""
        if self.reach is None:
            return ""
        reached = self.value <= self.reach if self.at_most else self.value >= self.reach
        return "reached" if reached else "missed"

    def cells(self) -> list[str]:
        """The row as text."""
        sign = "" if self.reach is None else ("<= " if self.at_most else ">= ")
        reach = "" if self.reach is None else f"{sign}{self.reach:g}"
        return [self.name, f"{self.value:.3g} {self.unit}".strip(), reach, self.verdict, self.note]


@dataclass(slots=True)
class Report:
    """Groups of rows, in the order in which they were measured."""

    groups: dict[str, list[Row]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """What was not measured, and why."""

    def add(self, group: str, *rows: Row) -> None:
        """Take rows, and print them at once."""
        self.groups.setdefault(group, []).extend(rows)
        for row in rows:
            name, value, reach, verdict, note = row.cells()
            print(f"{name:64} {value:>14}  {reach:>9} {verdict:8} {note}", flush=True)

    def leave_out(self, what: str) -> None:
        """Say what is not measured here."""
        self.left_out.append(what)
        print(f"left out: {what}", flush=True)

    def write(self, directory: Path) -> None:
        """`results.md` and a plot for each group whose rows have one unit."""
        cpus = len(os.sched_getaffinity(0))
        lines = [
            "# Results of one run",
            "",
            f"{cpus} cores, Linux {platform.release()}, Python {platform.python_version()}. "
            "Figures of one run on one machine: only those within a table can be compared.",
            "",
        ]
        for group, rows in self.groups.items():
            lines += [
                f"## {group}",
                "",
                "| measure | here | reach | | note |",
                "|---|---|---|---|---|",
            ]
            lines += ["| " + " | ".join(row.cells()) + " |" for row in rows]
            lines.append("")
            drawn = [row for row in rows if row.unit == rows[0].unit]
            if len(drawn) > 1:
                name = "".join(c if c.isalnum() else "-" for c in group.lower())
                (directory / f"{name}.svg").write_text(draw(group, drawn))
                lines += [f"![{group}]({name}.svg)", ""]
        lines += [f"Left out: {what}." for what in self.left_out]
        (directory / "results.md").write_text("\n".join(lines).rstrip() + "\n")


def draw(title: str, rows: Sequence[Row]) -> str:
    """A bar for each row, as SVG."""
    longest = max(row.value for row in rows) or 1
    height = 40 + len(rows) * (_BAR + _GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="8" y="20" font-size="14">{escape(title)} ({escape(rows[0].unit)})</text>',
    ]
    for index, row in enumerate(rows):
        top = 34 + index * (_BAR + _GAP)
        width = max(1.0, row.value / longest * (_WIDTH - _LEFT - 80))
        parts.append(
            f'<text x="{_LEFT - 8}" y="{top + 12}" text-anchor="end">{escape(row.name[:46])}</text>'
            f'<rect x="{_LEFT}" y="{top}" width="{width:.1f}" height="{_BAR}" fill="#4a7ab5"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="{top + 12}">{row.value:.3g}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
