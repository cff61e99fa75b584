"""Python packages of a template: fetched by this machine's pip, installed by the template's own.

What is installed is what the lock says, byte for byte: pip checks every file against its hashes.
Fetching from outside means that the machine's settings for pip (mirror, proxy, authority) hold,
and that nothing inside needs the network.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable

from sandgate.templates.root import Root, build_environment, run_tool

_WHEELS = "/var/tmp/wheels"  # noqa: S108 - of the template, which nobody else is in
_LOCK = f"{_WHEELS}/lock.txt"
_GLIBC_MINOR = 36
"""Of Debian bookworm: wheels for this and older versions of the C library fit."""
_TESTED = ("matplotlib", "numpy", "pandas", "scipy", "sklearn", "sympy")
"""Packages that install their own tests; 150 MB of them."""


def platforms(machine: str) -> list[str]:
    """The platform tags of wheels that run in a template, for a `platform.machine()`."""
    newer = [f"manylinux_2_{minor}_{machine}" for minor in range(_GLIBC_MINOR, 4, -1)]
    return [*newer, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]


def selection(python: str, machine: str) -> list[str]:
    """pip's options for wheels of a Python (like "3.11") and a machine, and nothing but wheels."""
    chosen = [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]
    return [*chosen, *(f"--platform={tag}" for tag in platforms(machine))]


def install(root: Root, lock: str, progress: Callable[[str], None]) -> None:
    """Install the packages of a lock for everybody inside. Raises TemplateError.

    `root` must have the mounts that programs in it need. `progress` is told each step.
    """
    wheels = root.at(_WHEELS)
    wheels.mkdir(parents=True)
    try:
        root.write(_LOCK, lock, 0o644)
        version = "import sys; print('%d.%d' % sys.version_info[:2])"
        python = root.run("python3", "-c", version).strip()
        progress("downloading Python packages")
        run_tool(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--require-hashes", "--dest", str(wheels), "--requirement", str(root.at(_LOCK))),
                *selection(python, platform.machine()),
            ],
            "downloading Python packages",
            environment=pip_environment(),
        )
        progress("installing Python packages")
        root.run(
            *("python3", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
            *("--find-links", _WHEELS, "--require-hashes", "--requirement", _LOCK),
        )
    finally:
        shutil.rmtree(wheels)
    installed = root.at(f"/usr/local/lib/python{python}/dist-packages")
    for package in _TESTED:
        for tests in list((installed / package).rglob("tests")):
            shutil.rmtree(tests, ignore_errors=True)  # one below another is gone already


def pip_environment() -> dict[str, str]:
    """Of build tools, and with the machine's settings for pip."""
    wanted = ("PIP_", "SSL_CERT_")
    own = {key: value for key, value in os.environ.items() if key.startswith(wanted)}
    home = os.environ.get("HOME", "/root")
    return {**build_environment(), **own, "HOME": home, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
