"""The parts of rules, as they are encoded for the kernel (linux/netfilter/nf_tables.h). Pure.

What a rule asks is in `matches`, what it does in `actions`. The words are those that
`nft list ruleset` prints, so a rule can be shown, compared in a test, and checked against what the
kernel says it has.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Statement:
    """A match or an action. `expressions` are encoded; a rule's are concatenated."""

    words: str
    expressions: bytes


Rule = tuple[Statement, ...]
"""Matches, then actions. All matches must hold."""


def show(rule: Rule) -> str:
    """The rule in nft's language."""
    return " ".join(statement.words for statement in rule)
