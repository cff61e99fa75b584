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


_IDLE = """
import json, select, socket, sys, time
held = {}
for label, family, host, port in json.loads(sys.argv[1]):
    sock = socket.socket(getattr(socket, family))
    sock.settimeout(5)
    sock.connect(("::ffff:" + host if family == "AF_INET6" else host, port))
    if port == 80:
        sock.sendall(b"GET / HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n")
    else:
        sock.sendall(b"ping")
    assert sock.recv(4096)
    held[sock] = label
print("ready", flush=True)
end = time.monotonic() + 8
while held and time.monotonic() < end:
    for sock in select.select(list(held), [], [], 0.5)[0]:
        try:
            what = "more" if sock.recv(4096) else "the end"
        except OSError as error:
            what = type(error).__name__
        print(f"{held.pop(sock)}: {what} {time.time():.3f}", flush=True)
print("rest:", *held.values(), flush=True)
"""


def test_connections_that_are_idle_hear_of_a_tighter_policy_at_once(
    box: Box, internet: Internet
) -> None:
    """Nobody sends anything: the sandbox's sockets are reset all the same, and the far ends."""
    box.sandbox.files.write("/home/user/idle.py", _IDLE)
    box.policy(["1.1.1.1", "9.9.9.9", "api.example.com"], DENY_ALL)
    wanted = [
        ["forwarded", "AF_INET", "9.9.9.9", 8080],
        ["mapped", "AF_INET6", "9.9.9.9", 8080],
        ["kept", "AF_INET", "1.1.1.1", 8080],
        ["by name", "AF_INET", "93.184.216.40", 80],
    ]
    command = shlex.join(["python3", "idle.py", json.dumps(wanted)])
    handle = box.sandbox.commands.run(command, background=True)
    said: list[str] = []
    for out, _, _ in handle:
        said.append(out or "")
        if "ready" in said[-1]:
            break
    box.policy(["1.1.1.1", "api.example.com"], DENY_ALL)
    returned = box.sandbox.commands.run("date +%s.%N").stdout
    for out, _, _ in handle:
        said.append(out or "")
    lines = "".join(said).splitlines()[1:]
    ends = {line.partition(":")[0]: line.split() for line in lines}
    for label in ("forwarded", "mapped"):
        assert ends[label][-2] == "ConnectionAbortedError", lines  # by SOCK_DESTROY
        # The clock of the machine is that of the sandbox; the call had not even returned.
        assert float(ends[label][-1]) < float(returned), (lines, returned)
    assert lines[-1] == "rest: kept by name", lines
