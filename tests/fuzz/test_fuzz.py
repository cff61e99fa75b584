"""The corpus, and a moment of fuzzing. `make fuzz` takes longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.__main__ import GUIDED
from fuzz.targets import CORPUS, TARGETS, corpus

_TESTS = Path(__file__).parent.parent


@pytest.mark.parametrize("name", TARGETS)
def test_the_properties_hold_for_the_corpus(name: str) -> None:
    inputs = corpus(name)
    assert inputs
    for data in inputs:
        try:
            TARGETS[name](data)
        except Exception as error:
            error.add_note(f"input: {data!r}")
            raise


def test_every_corpus_has_its_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()


def _fuzz(where: Path, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", name, "--alone", f"--new={where}", "--seconds=1", *options],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(_TESTS)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_the_properties_hold_for_a_second(tmp_path: Path, name: str) -> None:
    done = _fuzz(tmp_path, name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("number_of_executed_units" in done.stdout + done.stderr) == GUIDED


def test_without_atheris_the_corpus_is_changed_at_random(tmp_path: Path) -> None:
    done = _fuzz(tmp_path, "dns_query", "--blind")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "inputs tried" in done.stdout


@pytest.mark.parametrize("options", [["--blind"], []], ids=["blind", "guided"])
def test_what_breaks_a_property_is_told_and_kept(tmp_path: Path, options: list[str]) -> None:
    broken = tmp_path / "sitecustomize.py"
    broken.write_text("import sandgate.policy.parsing\nsandgate.policy.parsing.MAX_ENTRIES = 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "fuzz", "policy", "--seconds=20", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{_TESTS}"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert done.returncode != 0
    assert "properties that do not hold: policy" in done.stderr
    assert list(tmp_path.glob("crash-*"))
