"""Every example, as a user would run it, in the small internet."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from internet import ATTACKER, Internet

_RUN_ALL = Path(__file__).resolve().parents[2] / "examples" / "run_all.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_all", _RUN_ALL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_all = _load()

# What each example must print, in this order; regular expressions.
SHOWS: dict[str, list[str]] = {
    "01": [
        r"=[Tt]rue",
        r"https://google.com: reached, HTTP 200",
        r"https://1.1.1.1: reached, HTTP 301",
        r"=[Ff]alse",
        r"https://google.com: blocked, .*Could not resolve host",
        r"https://1.1.1.1: blocked, .*connect",
    ],
    "02": [
        r"everything denied but 1.1.1.1 and 8.8.8.0/24",
        r"https://1.1.1.1: reached, HTTP 301",
        r"https://8.8.8.8: reached, HTTP 302",
        r"https://9.9.9.9: blocked",
        r"8.8.8.8 denied",
        r"https://1.1.1.1: reached",
        r"https://8.8.8.8: blocked",
    ],
    "03": [
        r"https://google.com: reached",
        r"https://www.google.com: blocked",
        r"https://cloudflare.com: blocked",
        r"https://1.1.1.1: blocked",
        r"claimed",
        r"https://google.com: reached",
    ],
    "04": [
        r"https://www.mydomain.com: reached",
        r"https://deep.down.mydomain.com: reached",
        r"https://mydomain.com: blocked",
        r"https://google.com: blocked",
    ],
    "05": [
        r"https://api.example.com: reached",
        r"https://api.github.com: reached",
        r"https://8.8.8.8: reached",
        r"https://1.1.1.1: blocked",
    ],
    "06": [r"https://8.8.8.8: reached", r"https://1.1.1.1: blocked"],
    "07": [
        r"0.0.0.0/0 denied",
        r"https://1.1.1.1: blocked",
        r"1.1.1.1 allowed",
        r"https://1.1.1.1: reached",
        r"https://8.8.8.8: blocked",
        r"no restriction",
        r"https://8.8.8.8: reached",
    ],
    "08": [
        r"port 3000 is at https://3000-[a-z0-9]+\.sandgate\.localhost\n",
        r"The sandbox is running but port is not open",
    ],
    "09": [
        r"without the token: 403, Sandbox is secured with traffic access token",
        r"with the token: 200",
    ],
    "10": [
        r"https://3000-[a-z0-9]+\.sandgate\.localhost: 200",
        r"Directory listing for /",
        r"\.bash_logout",
        r"\.bashrc",
        r"\.profile",
    ],
    "11": [
        r"requested: https://(8080-[a-z0-9]+\.sandgate\.localhost)\n",
        r"Host: localhost:8080\n",
        r"X-Forwarded-Host: 8080-[a-z0-9]+\.sandgate\.localhost\n",
    ],
    "12": [
        r"result: .*png",
        r"value of the last line: 1.0\n",
        r"chart: line, Two waves, 2 lines\n",
        r"picture: .*waves.png, [0-9]{5,} bytes",
    ],
}


@pytest.mark.parametrize(
    "example", run_all.examples(), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_an_example_shows_what_it_says(node: object, internet: Internet, example: Path) -> None:
    done = subprocess.run(
        run_all.command(example), capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    pattern = ".*?".join(SHOWS[example.stem[:2]])
    assert re.search(pattern, done.stdout, re.DOTALL), done.stdout
    assert not internet.contacts(destination=ATTACKER)


@pytest.mark.parametrize("language", ["python", "typescript"])
def test_there_is_an_example_for_every_point(language: str) -> None:
    numbers = [path.stem[:2] for path in run_all.examples() if path.parent.name == language]
    assert numbers == sorted(SHOWS)


@pytest.mark.parametrize("example", run_all.examples(), ids=lambda path: path.name)
def test_an_example_is_what_a_user_of_e2b_writes(example: Path) -> None:
    text = example.read_text()
    assert "e2b" in text and "sandgate" not in text.lower() and "sleep" not in text
    assert run_all.title(example)


def test_run_all_starts_its_own_internet_where_there_is_none(node: object) -> None:
    """This process's network has an internet, but not one that `run_all` would take for real."""
    code = (
        f"import sys; sys.path.insert(0, {str(_RUN_ALL.parent)!r}); import run_all\n"
        "run_all.internet_is_there = lambda: False\n"
        "run_all.examples = lambda: [p for p in sorted((run_all.HERE / 'python').glob('0[16]*'))]\n"
        "sys.exit(run_all.main())"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("E2B_", "SSL_CERT"))}
    done = subprocess.run(
        [*run_all.command(Path("x.py"))[:1], "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has no internet" in done.stdout and "reached" in done.stdout
    assert "All 2 examples ran" in done.stdout
