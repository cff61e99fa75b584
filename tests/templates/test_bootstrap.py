from __future__ import annotations

import pytest

from sandgate.templates import TemplateError
from sandgate.templates.bootstrap import PhaseParser, sources

OUTPUT = [
    "I: chroot architecture amd64 is equal to the host's architecture",
    "I: running apt-get update...",
    "\x1b[2K            100.00 [=======]",
    "I: downloading packages with apt...",
    "\x1b[2K             50.00 [===    ]",
    "done",
    "I: extracting archives...",
    "\x1b[2Kextracting:   25.00 [=     ]",
    "I: installing essential packages...",
    "I: installing remaining packages inside the chroot...",
    "\x1b[2Kinstalling:   75.50 [====  ]",
    "I: cleaning package lists and apt cache...",
]


def test_progress_names_each_step_and_only_moves_forward() -> None:
    parser = PhaseParser()
    steps = [step for line in OUTPUT if (step := parser.feed(line)) is not None]
    fractions = [fraction for _, fraction in steps]
    assert [label for label, _ in steps] == [
        "fetching package lists",
        "fetching package lists",
        "downloading packages",
        "downloading packages",
        "unpacking",
        "unpacking",
        "installing essential packages",
        "installing packages",
        "installing packages",
        "cleaning up",
    ]
    assert fractions == sorted(fractions)
    assert fractions[3] == pytest.approx(0.175)
    assert not parser.tail


def test_what_is_neither_step_nor_bar_is_kept_for_the_error_message() -> None:
    parser = PhaseParser()
    for line in ("I: running apt-get update...", "Err:1 cannot resolve 'mirror'", "E: it failed"):
        parser.feed(line)
    assert list(parser.tail) == ["Err:1 cannot resolve 'mirror'", "E: it failed"]


def test_a_flood_of_output_is_not_kept() -> None:
    parser = PhaseParser()
    for number in range(1000):
        parser.feed(f"line {number}")
    assert len(parser.tail) == 20


@pytest.mark.parametrize(
    "mirror", ["http://mirror.example/debian", "http://mirror.example/debian/"]
)
def test_a_mirror_stands_for_release_updates_and_security(mirror: str) -> None:
    assert sources("bookworm", mirror) == [
        "deb http://mirror.example/debian bookworm main",
        "deb http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]


@pytest.mark.parametrize(
    "mirror", ["mirror.example/debian", "http://mirror.example", "file:/debian"]
)
def test_a_mirror_that_is_no_debian_address_is_refused(mirror: str) -> None:
    with pytest.raises(TemplateError, match="debian_mirror"):
        sources("bookworm", mirror)
