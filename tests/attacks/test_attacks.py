"""Every attack of the catalogue, in all places, judged by what the far side heard."""

from __future__ import annotations

import pytest

from attacks.attack import Attack, Verdict
from attacks.catalogue import ATTACKS
from attacks.stage import Stage
from attacks.table import PAGE, render, replace


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            attack,
            id=f"{group.title}: {attack.title}",
            marks=[pytest.mark.long] if attack.long else [],
        )
        for group, attack in ATTACKS
    ],
)
@pytest.mark.timeout(120)
def test_an_attack(stage: Stage, attack: Attack) -> None:
    ours, theirs, ungated = stage.attack(attack)
    if ungated is not None:
        assert ungated.verdict is Verdict.PASSES, f"it does not even work: {ungated.said}"
    assert ours.verdict is attack.ours, f"{ours.leaks} {ours.said}"
    assert ours.control is not False, f"what is allowed works no more: {ours.said}"
    assert (theirs and theirs.verdict) is attack.theirs, theirs
    if theirs is not None:
        assert theirs.control is not False, f"the model lets nothing pass: {theirs.said}"


def test_the_table_in_the_documentation_is_that_of_the_attacks() -> None:
    page = PAGE.read_text()
    assert page == replace(page, render()), "run `python -m attacks.table` in `tests`"
