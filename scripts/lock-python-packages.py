"""Write the lock of each template's Python packages. Run with the Python of `.venv`.

pip resolves the ranges of the definition for the Python of Debian bookworm, on each architecture;
the lock has every version once, with the hashes of the wheels of all architectures.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections import defaultdict

from sandgate.templates.definition import DEFINITIONS
from sandgate.templates.python_packages import pip_environment, selection
from sandgate.templates.root import run_tool

PYTHON = "3.11"
MACHINES = ("x86_64", "aarch64")
HEAD = "# Written by scripts/lock-python-packages.py from the ranges in {}.\n"


def resolve(ranges: list[str], machine: str) -> dict[tuple[str, str], str]:
    """SHA-256 of each wheel by (name, version)."""
    report = run_tool(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
            *("--ignore-installed", "--target", "/nonexistent", "--report", "-"),
            *selection(PYTHON, machine),
            *ranges,
        ],
        f"resolving for {machine}",
        environment=pip_environment(),
    )
    return {
        (item["metadata"]["name"], item["metadata"]["version"]): item["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for item in json.loads(report)["install"]
    }


def main() -> None:
    """Renew every lock."""
    for path in sorted(DEFINITIONS.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        if "python_lock" not in table:
            continue
        hashes: dict[tuple[str, str], set[str]] = defaultdict(set)
        for machine in MACHINES:
            for package, digest in resolve(table["python_packages"], machine).items():
                hashes[package].add(digest)
        names = [name for name, _ in hashes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise SystemExit(f"architectures need different versions of {', '.join(double)}")
        lines = [HEAD.format(path.name)]
        for (name, version), digests in sorted(hashes.items(), key=lambda item: item[0][0].lower()):
            options = "".join(f" \\\n    --hash=sha256:{digest}" for digest in sorted(digests))
            lines.append(f"{name}=={version}{options}\n")
        (DEFINITIONS / table["python_lock"]).write_text("".join(lines))


if __name__ == "__main__":
    main()
