"""Host names as they are compared, and sets of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class NameSet:
    """Allowed names: exact ones, and `*.` suffixes that match any depth below but not the apex."""

    exact: frozenset[str] = frozenset()
    suffixes: frozenset[str] = frozenset()
    """Without the `*.`"""
    every: bool = False

    @classmethod
    def of(cls, patterns: Iterable[str]) -> NameSet:
        """From normalised patterns (see :func:`normalise_pattern`)."""
        patterns = list(patterns)
        return cls(
            exact=frozenset(p for p in patterns if not p.startswith("*")),
            suffixes=frozenset(p[2:] for p in patterns if p.startswith("*.")),
            every="*" in patterns,
        )

    def match(self, name: str) -> str | None:
        """The pattern that admits `name` (normalised by :func:`normalise_name`), if any."""
        if name in self.exact:
            return name
        start = name.find(".")
        while start != -1:
            suffix = name[start + 1 :]
            if suffix in self.suffixes:
                return f"*.{suffix}"
            start = name.find(".", start + 1)
        return "*" if self.every else None

    def __bool__(self) -> bool:
        return self.every or bool(self.exact or self.suffixes)

    def patterns(self) -> list[str]:
        """All patterns, sorted."""
        every = ["*"] if self.every else []
        return every + sorted(self.exact) + [f"*.{suffix}" for suffix in sorted(self.suffixes)]


def normalise_name(name: str) -> str | None:
    """A host name as it is compared: lower case, no trailing dot. None if it is not a host name.

    An address is not a name, so that `Host: 1.2.3.4` is judged by address.
    """
    if not name.isascii():  # before lower(), which maps the Kelvin sign to a "k"
        return None
    name = name.lower().removesuffix(".")
    if not 0 < len(name) <= 253:
        return None
    labels = name.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        return None
    return name
