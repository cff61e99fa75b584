"""A sandbox that opens all it can: it is refused at once, and nobody else notices."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from e2e import front
from e2e.box import Box
from internet import Internet
from sandgate.limits import BURST_SECONDS, TrafficLimits

_FLOOD = """
import collections, errno, json, select, socket, time
met = collections.Counter()
held = []
started = time.monotonic()
for number in range(3000):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((f"93.184.216.{number % 250}", 1000 + number))
    held.append(sock)
    if len(held) == 100:
        time.sleep(0.02)
        for sock in held:
            _, done, _ = select.select([], [sock], [], 0)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            met[errno.errorcode.get(error, "pending")] += 1
            sock.close()
        held.clear()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(20000):
    try:
        datagrams.sendto(b"x", (f"9.9.9.{number % 250}", 1000 + number))
    except OSError as error:
        met["datagrams"] += 1
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(2000):
    try:
        resolver.sendto(b"no query", ("8.8.8.8", 53))
    except OSError as error:
        met["queries"] += 1
print(json.dumps({"met": met, "seconds": time.monotonic() - started}))
"""


def test_a_flood_is_refused_and_the_neighbour_goes_on(
    make_box: Callable[..., Box], other_box: Box, internet: Internet
) -> None:
    flooding = make_box(timeout=300)
    flooding.sandbox.files.write("/home/user/flood.py", _FLOOD)
    other_box.policy()
    flood = flooding.sandbox.commands.run("python3 flood.py", background=True)
    for _ in range(5):
        assert other_box.probe("tcp", "1.1.1.1", 8080, "ping").outcome == "answered"
        assert other_box.dig("www.google.com").startswith("NOERROR")
    told = json.loads(flood.wait().stdout)
    limits = TrafficLimits()
    most = limits.new_connections * (BURST_SECONDS + told["seconds"]) + 10
    opened = {
        (contact.destination, contact.port)
        for contact in internet.contacts(kind="packet", protocol="tcp")
        if contact.destination.startswith("93.184.216.")
    }
    # It gets its share, and for the rest a reset like that of the far side, whose ports are closed.
    assert limits.new_connections * BURST_SECONDS <= len(opened) <= most
    assert set(told["met"]) <= {"ECONNREFUSED", "datagrams", "queries"}, told
    tracked = int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())
    assert tracked <= most + 200, "others have some, too"
    # Neither flood hides the other, nor the datagrams, which are not refused, hide both.
    path = f"/sandboxes/{flooding.sandbox.sandbox_id}/network/decisions?verdict=deny&reason="
    for reason in ("limit_connection_rate", "limit_dns_rate"):
        deadline = time.monotonic() + 30
        while not front.api("GET", path + reason).json["decisions"]:
            assert time.monotonic() < deadline, reason
            time.sleep(0.2)
