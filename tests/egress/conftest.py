from __future__ import annotations

from collections.abc import Iterator

import pytest

from egress.lab import FIRST, SECOND, Lab


@pytest.fixture(scope="package")
def running_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("egress"))
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def lab(running_lab: Lab) -> Iterator[Lab]:
    """The lab, without sandboxes, contacts or an unexpected word of the gateway."""
    running_lab.request(op="retain", addresses=[])
    running_lab.side.contacts.clear()
    running_lab.side.queries.clear()
    running_lab.side.requests.clear()
    before = running_lab.seen = len(running_lab.log())
    yield running_lab
    for address in (FIRST, SECOND):
        running_lab.request(op="remove", address=address)
    said = running_lab.log()[before:].splitlines()
    expected = ("{", "control request refused")
    unexpected = [line for line in said if line and not line.startswith(expected)]
    assert not unexpected, "the gateway reported trouble, or imported something after its start"
