"""Kernel settings of the network namespace that the calling thread is in."""

from __future__ import annotations

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
    path = _path(name)
    try:
        path.write_text(value)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot set {name} to {value}: {error.strerror}; is /proc/sys writable?"
        ) from error


def encode(values: Mapping[str, str]) -> str:
    """Settings as one line of text. Values must not contain spaces."""
    return " ".join(f"{name}={value}" for name, value in values.items())


def decode(line: str) -> dict[str, str]:
    """The inverse of :func:`encode`. Words without `=` are skipped."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def _path(name: str) -> Path:
    return _ROOT / name.replace(".", "/")
