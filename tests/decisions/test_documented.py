"""The documents list what there is."""

from __future__ import annotations

import re
from pathlib import Path

from sandgate.reasons import Reason

DOCUMENT = Path(__file__).parents[2] / "docs" / "decisions.md"


def test_each_reason_is_documented_once_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \| (?:allow|deny) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(Reason)
