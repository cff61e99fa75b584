"""PUT on a running sandbox: the new policy holds when the call returns."""

from __future__ import annotations

import json
import shlex

import pytest
from e2b import CommandHandle, Sandbox, SandboxNotFoundException

from e2e.box import DENY_ALL, Box, until
from internet import Internet


def test_every_change_holds_for_the_next_connection(box: Box, internet: Internet) -> None:
    """The steps of E2B's own update test, in one sandbox."""
    both = ("1.1.1.1", "9.9.9.9")

    def reachable() -> list[str]:
        seen = box.probes("tcp", *([address, 8080, "ping"] for address in both))
        assert all(one.refused or one.outcome == "answered" for one in seen), seen
        return [a for a, one in zip(both, seen, strict=True) if one.outcome == "answered"]

    def names() -> list[str]:
        wanted = ("api.example.com", "cloudflare.com")
        return [name for name in wanted if box.fetch(f"https://{name}/") is not None]

    assert reachable() == [*both]
    box.policy([], DENY_ALL)
    assert reachable() == []
    box.policy(["1.1.1.1"], DENY_ALL)
    assert reachable() == ["1.1.1.1"]
    box.policy(["9.9.9.9"], DENY_ALL)
    assert reachable() == ["9.9.9.9"]
    box.policy([*both], DENY_ALL)
    assert reachable() == [*both]
    box.policy(["9.9.9.0/24"], DENY_ALL)
    assert reachable() == ["9.9.9.9"]
    box.names("api.example.com")
    assert (reachable(), names()) == ([], ["api.example.com"])
    box.names("cloudflare.com", "1.1.1.1")
    assert (reachable(), names()) == (["1.1.1.1"], ["cloudflare.com"])
    box.policy(None, DENY_ALL)
    assert (reachable(), names()) == ([], [])
    box.policy()
    assert (reachable(), names()) == ([*both], ["api.example.com", "cloudflare.com"])
    box.policy(["1.1.1.1"])
    assert reachable() == [*both]
    box.policy(internet=False)
    assert reachable() == []
    box.policy(internet=True)
    assert reachable() == [*both]
    box.policy(internet=False)
    box.policy()
    assert reachable() == [*both]


def test_twenty_changes_in_a_row_each_hold_at_once(box: Box) -> None:
    for _ in range(10):
        box.policy([], DENY_ALL)
        assert box.probe("tcp", "1.1.1.1", 8080, "x").refused
        box.policy()
        assert box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"


def _hold(box: Box, internet: Internet, port: int, seconds: float) -> CommandHandle[str]:
    """A busy connection from inside to 9.9.9.9, once it stands."""
    arguments = shlex.quote(json.dumps(["9.9.9.9", port, seconds]))
    held = box.sandbox.commands.run(
        f"python3 /home/user/.probe.py hold {arguments}", background=True
    )
    until(lambda: internet.contacts(kind="connection", destination="9.9.9.9", port=port))
    return held


@pytest.mark.parametrize("deny", [["9.9.9.9"], DENY_ALL])
def test_a_tightened_policy_ends_connections_under_way(
    box: Box, internet: Internet, deny: list[str]
) -> None:
    held = _hold(box, internet, 5432, 8)
    box.policy([], deny)
    seen = json.loads(held.wait().stdout)
    assert seen["outcome"] != "connected" and seen["seconds"] < 6, seen


def test_a_connection_that_stays_allowed_goes_on(box: Box, internet: Internet) -> None:
    held = _hold(box, internet, 5432, 1.5)
    box.policy(["9.9.9.9"], DENY_ALL)
    assert json.loads(held.wait().stdout)["outcome"] == "connected"


def test_a_tightened_policy_ends_a_connection_allowed_by_name(box: Box, internet: Internet) -> None:
    box.names("api.example.com", "www.example.com")
    download = box.sandbox.commands.run(
        "curl -sS --limit-rate 8M http://api.example.com/bytes/90000000 | wc -c", background=True
    )
    until(lambda: internet.contacts(kind="request"))
    box.names("www.example.com")
    assert int(download.wait().stdout) < 90_000_000


def test_the_policy_in_force_is_reported(box: Box) -> None:
    box.policy(["*.example.com", "1.1.1.1"], DENY_ALL)
    network = box.sandbox.get_info().network
    assert network is not None
    assert sorted(network["allow_out"]) == ["*.example.com", "1.1.1.1"]
    assert network["deny_out"] == DENY_ALL


def test_one_sandboxs_policy_is_not_anothers(box: Box, other_box: Box) -> None:
    other_box.policy()
    box.policy([], DENY_ALL)
    assert box.probe("tcp", "1.1.1.1", 8080, "x").refused
    assert other_box.probe("tcp", "1.1.1.1", 8080, "x").outcome == "answered"


def test_an_unknown_sandbox_is_404(node: object) -> None:
    with pytest.raises(SandboxNotFoundException):
        Sandbox.update_network("nonexistingsandbox", {})
