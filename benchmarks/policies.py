"""A change of policy: how long the call takes, whose time that is, and when it is felt inside."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import ssl
import time
from collections.abc import Callable

from e2b import ALL_TRAFFIC, Sandbox

from benchmarks.place import SERVER
from benchmarks.report import Report, Row, median, percentile

_ENTRIES = [f"198.{51 + index // 250}.{index % 250}.0/24" for index in range(10)]
_MANY = [f"{11 + index // 250}.{index % 250}.0.0/24" for index in range(1000)]
_FLOWS = 200

_HOLD = """
import select, socket, sys, time
address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
poll = select.poll()
held = {}
for _ in range(count):
    made = socket.create_connection((address, port))
    held[made.fileno()] = made
    poll.register(made, select.POLLIN)
print("ready", flush=True)
while held:
    found = poll.poll(20000)
    if not found:
        sys.exit("they stay open")
    for number, _ in found:
        poll.unregister(number)
        held.pop(number).close()
print(time.time())
"""


def measure(report: Report, sandboxes: list[Sandbox]) -> None:
    """The last of `sandboxes` changes, while the others have a policy as long."""
    for sandbox in sandboxes[:-1]:
        sandbox.update_network({"allow_out": _ENTRIES, "deny_out": [ALL_TRAFFIC]})
    target, count = sandboxes[-1], len(sandboxes)

    def by_sdk(entries: list[str]) -> None:
        target.update_network({"allow_out": entries, "deny_out": [ALL_TRAFFIC]})

    bare = _bare(target)
    with_sdk, without = _times(by_sdk), _times(bare)
    # With warm caches, which a machine that has other work does not have.
    at_once, at_once_bare = _times(by_sdk, pause=0), _times(bare, pause=0)
    # The same way there and back, and one row of the store instead of a policy.
    other = _times(lambda _: target.set_timeout(3600))
    felt = [_felt(target) for _ in range(5)]
    report.add(
        "Policy",
        Row(f"policy update, {count} sandboxes x 10 entries, p50", median(with_sdk), "ms", 2),
        Row("the same, p99", percentile(with_sdk, 0.99), "ms"),
        Row("the same without the SDK, on a kept connection, p50", median(without), "ms"),
        Row("policy update, one right after the other, p50", median(at_once), "ms"),
        Row("the same without the SDK, p50", median(at_once_bare), "ms"),
        Row("the SDK's set_timeout, which changes one number, p50", median(other), "ms"),
        Row(
            f"{len(_MANY)} ranges that leave out {_FLOWS} idle connections: call to the last reset",
            max(felt),
            "ms",
            50,
        ),
    )


def _times(change: Callable[[list[str]], None], *, pause: float = 0.02) -> list[float]:
    """Milliseconds of each of a hundred changes, with `pause` seconds between them."""
    times = []
    for index in range(100):
        entries = [*_ENTRIES[:-1], f"203.0.113.{index}"]
        begun = time.perf_counter()
        change(entries)
        times.append((time.perf_counter() - begun) * 1e3)
        time.sleep(pause)
    return times


def _bare(target: Sandbox) -> Callable[[list[str]], None]:
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    connection = http.client.HTTPSConnection(f"api.{os.environ['E2B_DOMAIN']}", context=context)
    headers = {"X-API-KEY": os.environ["E2B_API_KEY"], "Content-Type": "application/json"}

    def change(entries: list[str]) -> None:
        body = json.dumps({"allowOut": entries, "denyOut": [ALL_TRAFFIC]})
        connection.request("PUT", f"/sandboxes/{target.sandbox_id}/network", body, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 204, answer.status

    return change


def _felt(target: Sandbox) -> float:
    """Milliseconds from the client's call until the last connection inside is reset."""
    target.update_network({})
    words = ["python3", "-c", _HOLD, SERVER, "8080", str(_FLOWS)]
    held = target.commands.run(shlex.join(words), background=True)
    said = ""
    for out, _, _ in held:
        said += out or ""
        if "ready" in said:
            break
    begun = time.time()
    target.update_network({"allow_out": _MANY, "deny_out": [ALL_TRAFFIC]})
    said += "".join(out or "" for out, _, _ in held)
    return (float(said.split()[-1]) - begun) * 1e3
