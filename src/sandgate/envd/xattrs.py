"""Metadata that clients attach to files, kept as extended attributes `user.e2b.<key>`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

_PREFIX = "user.e2b."
_MAX_KEY = 255 - len(_PREFIX)
_MAX_TOTAL = 4096
_HEADER = "x-metadata-"
_UNSUPPORTED = (errno.ENOTSUP, errno.EOPNOTSUPP)


class MetadataError(ValueError):
    """The metadata cannot be stored; the text says why."""


def from_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Metadata of an upload: its `X-Metadata-<key>` headers, keys in lower case.

    :raises MetadataError: if a key or a value is not printable ASCII, or all is too long.
    """
    metadata: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower().removeprefix(_HEADER)
        if key != name.lower() and key:
            metadata.setdefault(key, value)

    for key, value in metadata.items():
        if len(key) > _MAX_KEY:
            raise MetadataError(f"invalid metadata: key '{key:.40}…' exceeds {_MAX_KEY} bytes")
        for kind, text in (("key", key), (f"value for key '{key}'", value)):
            if not (text.isascii() and (text.isprintable() or not text)):
                raise MetadataError(f"invalid metadata: {kind} must be printable ASCII: {text!r}")
    total = sum(len(_PREFIX) + len(key) + len(value) for key, value in metadata.items())
    if total > _MAX_TOTAL:
        raise MetadataError(f"invalid metadata: {total} bytes in all exceed {_MAX_TOTAL} bytes")
    return metadata


def read(path: str | int) -> dict[str, str]:
    """Metadata of a file. What is not UTF-8 was not written here and is left out.

    :param path: its path, not followed if it is a symbolic link, or an open descriptor.
    """
    # A link has no metadata of its own and the descriptor needs no such care.
    follow = isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError:
        return {}
    metadata = {}
    for name in names:
        if not name.startswith(_PREFIX):
            continue
        try:
            value = os.getxattr(path, name, follow_symlinks=follow).decode()
            name.encode()
        except (OSError, UnicodeError):
            continue
        metadata[name.removeprefix(_PREFIX)] = value
    return metadata


def replace(fd: int, metadata: Mapping[str, str]) -> None:
    """Make `metadata` the file's only metadata. Touches nothing that is already so.

    A file system without extended attributes (as /proc) is passed over.

    :raises OSError: if the kernel refuses, `ENOSPC` in particular.
    """
    try:
        existing = [name for name in os.listxattr(fd) if name.startswith(_PREFIX)]
        for name in existing:
            if name.removeprefix(_PREFIX) not in metadata:
                os.removexattr(fd, name)
        for key, value in metadata.items():
            os.setxattr(fd, _PREFIX + key, value.encode())
    except OSError as exc:
        if exc.errno not in _UNSUPPORTED:
            raise
