"""Kernel settings of the network namespace that the calling thread is in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path("/proc/sys")


def exists(name: str) -> bool:
    """Does the kernel have this setting (or group of settings)?"""
    return _path(name).exists()


def read(name: str) -> str:
    """The value of a setting such as `net.ipv4.ip_forward`. Raises OSError."""
    return _path(name).read_text().strip()


def write(name: str, value: str) -> None:
    """Change a setting. Raises OSError naming it."""
    try:
        _path(name).write_text(value)
    except OSError as error:
        raise _refused(name, value, error) from error


def write_through(proc: int, values: Mapping[str, str]) -> None:
    """Change settings through the proc file system whose root this descriptor is.

    One that no other namespace was looked at through is quicker than the one at /proc: the kernel
    keeps a name there for each namespace whose setting was opened, and compares them all. With
    1,000 namespaces alive four settings take 0.4 ms that way, with 3,000 0.9, here always 0.1.
    Raises OSError.
    """
    for name, value in values.items():
        path = f"sys/{name.replace('.', '/')}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            try:
                os.write(fd, value.encode())
            finally:
                os.close(fd)
        except OSError as error:
            raise _refused(name, value, error) from error


def encode(values: Mapping[str, str]) -> str:
    """Settings as one line of text. Values must not contain spaces."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def decode(line: str) -> dict[str, str]:
    """The inverse of :func:`encode`. Words without `=` are skipped."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _refused(name: str, value: str, error: OSError) -> OSError:
    return OSError(
        error.errno, f"cannot set {name} to {value}: {error.strerror}; is /proc/sys writable?"
    )


def _path(name: str) -> Path:
    return _ROOT / name.replace(".", "/")
