"""Try several versions of the code interpreter's packages; one line of output for each.

Every version gets a place of its own below the directory that is the only argument.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sdk.place import node_in_its_own_internet

PYTHON_VERSIONS = {"2.0.0": "2.2.0", "2.4.1": "2.7.0", "2.8.1": "2.30.0", "2.11.5": "2.63.0"}
"""Each with the `e2b` of its time: it uses parts of it that changed."""
NODE_VERSIONS = ("2.0.0", "2.4.2", "2.8.0")
_HERE = Path(__file__).parent


def install_python(cache: Path, version: str) -> list[str]:
    """The command that runs the check."""
    place = cache / f"run-code-python-{version}"
    python = place / "bin" / "python"
    if not (place / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        wanted = (f"e2b-code-interpreter=={version}", f"e2b=={PYTHON_VERSIONS[version]}")
        pip = [str(python), "-m", "pip", "install", "--quiet", *wanted]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        (place / "done").touch()
    return [str(python), "-W", "ignore", str(_HERE / "check.py")]


def install_node(cache: Path, version: str) -> list[str]:
    """The command that runs the check."""
    place = cache / f"run-code-node-{version}"
    tools = Path(sys.executable).parent
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "package.json").write_text('{"private": true, "type": "module"}\n')
        npm = [str(tools / "npm"), "install", "--no-audit", "--no-fund", "--silent"]
        npm.append(f"@e2b/code-interpreter@{version}")
        subprocess.run(npm, cwd=place, check=True)
        (place / "done").touch()
    shutil.copy(_HERE / "check.mjs", place)
    return [str(tools / "node"), str(place / "check.mjs")]


def main(cache: Path) -> int:
    """Returns the exit status."""
    cache.mkdir(parents=True, exist_ok=True)
    commands = {f"Python {v}": install_python(cache, v) for v in PYTHON_VERSIONS}
    commands |= {f"JavaScript {v}": install_node(cache, v) for v in NODE_VERSIONS}
    failed = 0
    with node_in_its_own_internet() as variables:
        for name, command in commands.items():
            done = subprocess.run(
                command,
                env={**os.environ, **variables},
                capture_output=True,
                text=True,
                timeout=120,
            )
            failed += done.returncode != 0
            print(f"{name}: {done.stdout.strip() or 'fails'}{done.stderr[-2000:]}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
