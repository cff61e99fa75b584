"""The file that holds owners and the hashes of their keys.

Root writes it, the API (which is not root) reads it: whoever takes the API over can add no key.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from sandgate.accounts.owners import AccountError, Owners
from sandgate.durable import replace_file

_MAX_BYTES = 16 << 20


def read_owners(path: Path) -> Owners:
    """What the file holds; nothing if there is none. Raises AccountError, OSError."""
    try:
        with path.open("rb") as file:
            return Owners.model_validate_json(file.read(_MAX_BYTES))
    except FileNotFoundError:
        return Owners()
    except ValidationError as error:
        (first, *_) = error.errors(include_input=False, include_url=False, include_context=False)
        where = ".".join(map(str, first["loc"]))
        raise AccountError(
            f"{path} is damaged ({where}: {first['msg']}); restore it from a backup, or remove it "
            "and add the keys again"
        ) from None


def update_owners(path: Path, gid: int, change: Callable[[Owners], Owners]) -> Owners:
    """Replace the content by what `change` makes of it, readable by root and the group `gid`.

    One after the other where several do so at once; all or nothing. Raises AccountError, OSError.
    """
    lock = os.open(
        path.with_name(f".{path.name}.lock"),
        os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
        0o600,
    )
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        owners = change(read_owners(path))
        # Synced: a revoked key must not be good again after a power cut.
        replace_file(path, owners.model_dump_json(indent=1).encode(), mode=0o640, group=gid)
        return owners
    finally:
        os.close(lock)
