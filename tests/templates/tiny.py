"""Templates small enough to build in a test: files alone, no Debian, no network."""

from __future__ import annotations

from dataclasses import dataclass, field

from sandgate.templates.definition import Definition, parse

ROOT = """
name = "root"
[[files]]
path = "/etc/who"
content = "root"
[[files]]
path = "/etc/secret"
mode = "0600"
content = "kept"
"""
CHILD = """
name = "child"
aliases = ["kid"]
from = "root"
[[files]]
path = "/etc/who"
content = "child"
"""


def definitions(**texts: str) -> dict[str, Definition]:
    """Definitions by name; without arguments `root`, and `child` on top of it."""
    texts = texts or {"root": ROOT, "child": CHILD}
    return {name: parse(text, name) for name, text in texts.items()}


@dataclass(slots=True)
class Recorder:
    """A reporter that remembers."""

    finished: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def phase(self, template: str, label: str, fraction: float) -> None:
        assert label
        assert 0 <= fraction <= 1, f"{template}: {label}"

    def done(self, template: str, summary: str) -> None:
        self.finished[template] = summary

    def note(self, text: str) -> None:
        self.notes.append(text)
