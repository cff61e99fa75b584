"""Owners, their keys and their quotas, as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from sandgate.accounts.keys import key_id

OPERATOR = "operator"
"""Owner of the key in `data_dir/api_key`, whose holder runs the node. It has no quota."""

_OWNER = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


class AccountError(ValueError):
    """What was asked for cannot be done. The text names the value and the remedy."""


class Quota(BaseModel):
    """What the sandboxes of one owner may have together. None: as much as the node has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_sandboxes: Annotated[int, Field(ge=0)] | None = None
    """At once, paused ones included."""
    memory_mb: Annotated[int, Field(ge=0)] | None = None
    """Their limits added up, MiB."""
    creates_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """On average; that many more, and one at least, may come at once."""

    def changed(self, given: Mapping[str, float | None]) -> Self:
        """With the values that are `given`; None means as before, a negative one no limit."""
        values = self.model_dump()
        for name, value in given.items():
            if value is not None:
                values[name] = None if value < 0 else value
        return type(self)(**values)


NO_QUOTA = Quota()


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request."""

    owner: str
    quota: Quota = NO_QUOTA

    @property
    def is_operator(self) -> bool:
        """May it see what concerns the node as a whole?"""
        return self.owner == OPERATOR


class KeyEntry(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    created_at: datetime

    @property
    def key_id(self) -> str:
        """What people call it."""
        return key_id(self.key_hash)


class OwnerEntry(BaseModel):
    """One owner. Without keys nobody can act for it, but its quota and its sandboxes stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quota: Quota = NO_QUOTA
    keys: tuple[KeyEntry, ...] = ()


class Owners(BaseModel):
    """All owners but the operator, by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    owners: dict[str, OwnerEntry] = Field(default_factory=dict)

    def with_key(self, name: str, key: KeyEntry, given: Mapping[str, float | None]) -> Self:
        """With one more key, and the owner if it is new. Raises AccountError."""
        check_owner(name)
        entry = self.owners.get(name, OwnerEntry())
        changed = OwnerEntry(quota=entry.quota.changed(given), keys=(*entry.keys, key))
        return self._with(name, changed)

    def with_quota(self, name: str, given: Mapping[str, float | None]) -> Self:
        """With another quota for an owner. Raises AccountError."""
        entry = self._entry(name)
        return self._with(name, OwnerEntry(quota=entry.quota.changed(given), keys=entry.keys))

    def without_key(self, wanted: str) -> Self:
        """Without the key of this id. Raises AccountError."""
        for name, entry in self.owners.items():
            left = tuple(key for key in entry.keys if key.key_id != wanted)
            if len(left) < len(entry.keys):
                return self._with(name, OwnerEntry(quota=entry.quota, keys=left))
        raise AccountError(f"there is no key {wanted!r}; `sandgate keys list` shows all")

    def without_keys_of(self, name: str) -> Self:
        """Without any key of an owner. Raises AccountError."""
        return self._with(name, OwnerEntry(quota=self._entry(name).quota))

    def callers(self) -> dict[str, Caller]:
        """By the hash of each key, whom it stands for."""
        return {
            key.key_hash: Caller(name, entry.quota)
            for name, entry in self.owners.items()
            for key in entry.keys
        }

    def _entry(self, name: str) -> OwnerEntry:
        entry = self.owners.get(name)
        if entry is None:
            raise AccountError(f"there is no owner {name!r}; `sandgate keys list` shows all")
        return entry

    def _with(self, name: str, entry: OwnerEntry) -> Self:
        return type(self)(owners={**self.owners, name: entry})


def check_owner(name: str) -> None:
    """Raises AccountError if nobody can be called so."""
    if name == OPERATOR:
        raise AccountError(
            f"{OPERATOR!r} is the owner of the node's own key, which `sandgate env` prints; "
            "use another name"
        )
    if not _OWNER.fullmatch(name):
        raise AccountError(
            f"invalid owner {name[:80]!r}: use up to 64 of a-z, 0-9 and, "
            "between them, '.', '_', '-'"
        )
