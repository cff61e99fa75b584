"""What the decision log costs traffic: connections a second with and without it, taking turns.

    sudo .venv/bin/python benchmarks/decision_log.py [ROUNDS]

Forwarded and refused connections: without is a kernel that nobody listens to. Through the gateway:
without is a gateway whose feed does nothing (it still writes its log). On a machine that does other
things as well, only the ratios mean something.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from egress.far_side import GOOD
from egress.lab import FIRST, Lab
from network import netlab
from sandgate.egress.client import EgressClient
from sandgate.egress.table import SandboxEntry
from sandgate.guard import AddressGuard
from sandgate.network import conntrack, sysctl
from sandgate.network.actions import saddr_mark
from sandgate.network.flows import ACCOUNTING
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER
from sandgate.policy import parse_policy
from sandgate.recorder.process import RecorderConfig

Measured = tuple[float, float]
"""Connections a second, and seconds of processor time for each."""
SECONDS = 3.0
_CLIENT = """
import resource, socket, struct, sys, time
address, port, source, talk, seconds = sys.argv[1:]
end, count = time.monotonic() + float(seconds), 0
while time.monotonic() < end:
    with socket.socket() as sock:
        sock.settimeout(5)
        if source:
            sock.bind((source, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        try:
            # Another address each time: many flows to one make the kernel look long for a port.
            sock.connect((address.format(count // 250 % 250, count % 250), int(port)))
            if talk:
                sock.sendall(b"GET / HTTP/1.1\\r\\nHost: good.test\\r\\n\\r\\n")
                assert sock.recv(4096)
        except ConnectionError:
            pass
    count += 1
spent = resource.getrusage(resource.RUSAGE_SELF)
print(count / float(seconds), (spent.ru_utime + spent.ru_stime) / count)
"""
_SERVER = """
import socket
server = socket.create_server(("0.0.0.0", 5000), backlog=4096)
print(flush=True)
while True:
    server.accept()[0].close()
"""
_NO_FEED = """
from sandgate.decisions.feed import Feed
Feed.begin = Feed.end = Feed.miss = Feed.flush = lambda *_, **__: None
from sandgate.egress.__main__ import main
main()
"""


def rate(address: str, port: int, source: str = "", talk: str = "") -> tuple[float, float]:
    """Connections a second of a client in the namespace of the calling thread, and how many
    seconds of processor time each took it: what the kernel does with its packets is in that."""
    arguments = [address, str(port), source, talk, str(SECONDS)]
    command = [sys.executable, "-c", _CLIENT, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    reached, cost = done.stdout.split()
    return float(reached), float(cost)


@contextmanager
def recorder(lab: netlab.Lab, directory: Path, entry: SandboxEntry) -> Iterator[int]:
    """A recorder that listens to the lab's kernel; its pid."""
    config = RecorderConfig(
        control_socket=directory / "recorder.sock",
        decisions_socket=directory / "nobody.sock",
        sandboxes=netlab.SANDBOXES,
        closed=AddressGuard(netlab.SANDBOXES).closed.networks,
        ingress_address=netlab.INGRESS,
        https_port=netlab.HTTPS_PORT,
    )
    with inside(lab.host):
        process = subprocess.Popen(
            [sys.executable, "-m", "sandgate.recorder"],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    try:
        assert process.stdin is not None
        process.stdin.write(config.to_json().encode())
        process.stdin.close()
        _tell(config.control_socket, entry)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _tell(path: Path, entry: SandboxEntry) -> None:
    import asyncio

    async def tell() -> None:
        async def entries() -> list[SandboxEntry]:
            return [entry]

        async with EgressClient(path, entries):
            pass

    asyncio.run(tell())


def kernel(rounds: int) -> dict[str, list[tuple[Measured, Measured]]]:
    """With and without, for forwarded and for refused connections."""
    policy = parse_policy(None, ["9.9.9.0/24"])
    ways = {"forwarded": "1.{}.{}.4", "refused": "9.9.9.{1}"}
    results: dict[str, list[tuple[Measured, Measured]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as scratch, netlab.lab() as lab:
        box = lab.sandbox(3, policy)
        entry = SandboxEntry("box", lab.network.address(3), policy)
        with inside(lab.far):
            server = subprocess.Popen([sys.executable, "-c", _SERVER], stdout=subprocess.PIPE)
        assert server.stdout is not None and server.stdout.readline()
        try:
            for turn in range(rounds):
                for way, addresses in ways.items():
                    found = {}
                    for listening in (True, False) if turn % 2 else (False, True):
                        _rest(lab, listening)
                        here = recorder(lab, Path(scratch), entry) if listening else nullcontext()
                        with here, inside(box):
                            found[listening] = rate(addresses, 5000)
                    results[way].append((found[True], found[False]))
        finally:
            server.kill()
            server.wait()
    return results


def _rest(lab: netlab.Lab, listening: bool) -> None:
    """Begin without flows, and with or without accounting."""
    with inside(lab.host), NetlinkSocket(NETLINK_NETFILTER) as netfilter:
        for name in ACCOUNTING:
            sysctl.write(name, "1" if listening else "0")
        conntrack.forget(netfilter, saddr_mark(lab.network.address(3)))
    time.sleep(0.5)


def gateway(rounds: int) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """With and without: connections a second, and processor time of the gateway for each."""
    rates, costs = [], []
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        lab = Lab(Path(scratch))
        try:
            for _ in range(rounds):
                found = []
                for program in (("-m", "sandgate.egress"), ("-c", _NO_FEED)):
                    lab.stop_gateway()
                    lab.program = program
                    lab.start_gateway()
                    lab.allow("good.test")
                    before = _processor(lab.pid)
                    with inside(os.open(f"/run/netns/{lab.boxes}", os.O_RDONLY)):
                        reached, _ = rate(GOOD, 80, FIRST, "talk")
                    spent = _processor(lab.pid) - before
                    found.append((reached, spent / (reached * SECONDS)))
                rates.append((found[0][0], found[1][0]))
                costs.append((found[0][1], found[1][1]))
        finally:
            lab.close()
    return rates, costs


def _processor(pid: int) -> float:
    """Seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tell(what: str, pairs: list[tuple[float, float]], scale: float, unit: str) -> None:
    """One line of the result."""
    with_log, without = (median(values) * scale for values in zip(*pairs, strict=True))
    ratio = median(one / other for one, other in pairs)
    print(f"{what:32} {with_log:8.0f} {without:8.0f} {unit:10} ratio {ratio:.3f}")


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    began = time.monotonic()
    print(f"{'median of ' + str(rounds):32} {'with':>8} {'without':>8}")
    for what, pairs in kernel(rounds).items():
        rates, costs = ([(one[index], other[index]) for one, other in pairs] for index in (0, 1))
        tell(f"{what} by the kernel", rates, 1, "conn/s")
        tell("  processor time of the client", costs, 1e6, "us/conn")
    rates, costs = gateway(rounds)
    tell("through the gateway", rates, 1, "conn/s")
    tell("gateway's processor time", costs, 1e6, "us/conn")
    print(f"{time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
