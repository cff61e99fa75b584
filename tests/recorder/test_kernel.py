"""What the kernel tells of refusals and flows, and that it becomes the right decisions.

The packets are real; the recorder reads them in this process.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from network import netlab
from network.netlab import HTTPS_PORT, INGRESS, SANDBOXES, Lab
from sandgate.decisions.tally import Subject, Sum
from sandgate.decisions.wire import Batch, decode
from sandgate.egress.privileges import Identity
from sandgate.egress.table import SandboxEntry
from sandgate.guard import ALWAYS_DENIED
from sandgate.network import conntrack, flows
from sandgate.network.actions import saddr_mark
from sandgate.network.namespaces import inside
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER
from sandgate.policy import EgressPolicy, NetworkSet, parse_policy
from sandgate.reasons import Reason
from sandgate.recorder.directory import Directory
from sandgate.recorder.judge import Judge, Surroundings
from sandgate.recorder.process import (
    Recorder,
    RecorderConfig,
    Sockets,
    idle_timeouts,
    open_sockets,
)

NOBODY = Identity(0, 0)
DENY_SOME = parse_policy(None, ["9.9.9.0/24"])
NAMES = parse_policy(["a.test"], ["0.0.0.0/0"])
NOTHING = parse_policy(None, ["0.0.0.0/0"])


@dataclass
class Recording:
    """A lab whose kernel is listened to, and what was told so far."""

    lab: Lab
    recorder: Recorder
    sockets: Sockets
    told: socket.socket

    def box(self, slot: int, policy: EgressPolicy) -> int:
        """A sandbox's namespace."""
        namespace = self.lab.sandbox(slot, policy)
        entry = SandboxEntry(f"box{slot}", self.lab.network.address(slot), policy)
        self.recorder.directory.set(entry)
        return namespace

    def sums(self) -> dict[Subject, Sum]:
        """What has been told since the last time."""
        assert self.sockets.refusals is not None and self.sockets.flows is not None
        self.recorder.read(self.sockets.refusals, self.recorder.packet)
        self.recorder.read(self.sockets.flows, self.recorder.flow)
        self.recorder.feed.flush()
        found: dict[Subject, Sum] = {}
        for batch in self.batches():
            for subject, amount in batch.sums:
                if subject in found:
                    found[subject].add(amount)
                else:
                    found[subject] = amount
        return found

    def batches(self) -> Iterator[Batch]:
        """Datagrams that came."""
        while True:
            try:
                yield decode(self.told.recv(1 << 20))
            except BlockingIOError:
                return

    def wait(self, subject: Subject, enough: Callable[[Sum], bool] = lambda _: True) -> Sum:
        """What was told of the subject, waited for; nothing else may be told meanwhile."""
        known: Sum | None = None
        deadline = time.monotonic() + netlab.PATIENCE
        while known is None or not enough(known):
            assert time.monotonic() < deadline, f"{subject} was not told: {known}"
            for other, amount in self.sums().items():
                assert other == subject
                if known is None:
                    known = amount
                else:
                    known.add(amount)
            time.sleep(0.01)
        return known


@pytest.fixture
def recording(lab: Lab, tmp_path: Path) -> Iterator[Recording]:
    with ExitStack() as stack:
        told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        told.bind(str(tmp_path / "decisions.sock"))
        told.setblocking(False)
        config = RecorderConfig(
            control_socket=tmp_path / "recorder.sock",
            decisions_socket=tmp_path / "decisions.sock",
            sandboxes=SANDBOXES,
            closed=tuple(NetworkSet([*ALWAYS_DENIED, SANDBOXES]).networks),
            ingress_address=INGRESS,
            https_port=HTTPS_PORT,
        )
        with inside(lab.host):
            sockets = open_sockets(config, NOBODY)
            timeouts = idle_timeouts()
        for opened in (sockets.refusals, sockets.flows, sockets.control):
            assert opened is not None
            stack.callback(opened.close)
        judge = Judge(Surroundings(NetworkSet(config.closed), (INGRESS, HTTPS_PORT)))
        recorder = Recorder(config, Directory(), judge, timeouts)
        stack.callback(recorder.feed.close)
        yield Recording(lab, recorder, sockets, told)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with netlab.lab() as made:
        yield made


def denied(
    protocol: str, destination: str, port: int, reason: Reason, rule: str | None = None
) -> Subject:
    return Subject("box3", protocol, destination, port, None, False, reason, rule)


@pytest.mark.parametrize(
    ("policy", "attempt", "outcome", "expected"),
    [
        (DENY_SOME, ("tcp", "9.9.9.9", 443), netlab.RESET,
         denied("tcp", "9.9.9.9", 443, Reason.DENIED_ADDRESS, "9.9.9.0/24")),
        (DENY_SOME, ("udp", "9.9.9.9", 53), netlab.PROHIBITED,
         denied("udp", "9.9.9.9", 53, Reason.DENIED_ADDRESS, "9.9.9.0/24")),
        (DENY_SOME, ("icmp", "9.9.9.9", 0), netlab.PROHIBITED,
         denied("icmp", "9.9.9.9", 0, Reason.DENIED_ADDRESS, "9.9.9.0/24")),
        (DENY_SOME, ("tcp", "10.1.2.3", 22), netlab.RESET,
         denied("tcp", "10.1.2.3", 22, Reason.ALWAYS_DENIED, "10.0.0.0/8")),
        (DENY_SOME, ("tcp", netlab.UPLINK, 22), netlab.RESET,
         denied("tcp", netlab.UPLINK, 22, Reason.ALWAYS_DENIED)),
        (DENY_SOME, ("udp", "198.18.0.99", 9), netlab.PROHIBITED,
         denied("udp", "198.18.0.99", 9, Reason.ALWAYS_DENIED, "198.18.0.0/15")),
        (DENY_SOME, ("tcp", str(INGRESS), 80), netlab.RESET,
         denied("tcp", str(INGRESS), 80, Reason.ALWAYS_DENIED, "198.18.0.0/15")),
        (NOTHING, ("tcp", str(INGRESS), HTTPS_PORT), netlab.RESET,
         denied("tcp", str(INGRESS), HTTPS_PORT, Reason.DENIED_ADDRESS, "0.0.0.0/0")),
        (NOTHING, ("udp", "8.8.8.8", 53), netlab.PROHIBITED,
         denied("udp", "8.8.8.8", 53, Reason.NO_RESOLVER)),
        (NAMES, ("udp", "8.8.8.8", 53), netlab.PROHIBITED,
         denied("udp", "8.8.8.8", 53, Reason.GATEWAY_DOWN)),
        (NAMES, ("tcp", "1.2.3.4", 443), netlab.RESET,
         denied("tcp", "1.2.3.4", 443, Reason.GATEWAY_DOWN)),
    ],
)  # fmt: skip
def test_each_refusal_is_told_with_its_reason_and_rule(
    recording: Recording,
    policy: EgressPolicy,
    attempt: tuple[str, str, int],
    outcome: str,
    expected: Subject,
) -> None:
    box = recording.box(3, policy)
    protocol, address, port = attempt
    if protocol == "icmp":
        assert netlab.ping_outcome(box, address) == outcome
    else:
        send = netlab.tcp_outcome if protocol == "tcp" else netlab.udp_outcome
        assert send(box, address, port) == outcome
    assert recording.wait(expected).count == 1


def test_a_forged_source_and_ip_options_are_told(recording: Recording) -> None:
    box = recording.box(3, EgressPolicy())
    netlab.run(box, "ip", "addr", "add", "198.18.0.77/32", "dev", "eth0")
    with netlab.make_socket(box, socket.SOCK_DGRAM) as forger:
        forger.bind(("198.18.0.77", 0))
        forger.sendto(b"x", ("1.2.3.4", 7))
    recording.wait(denied("udp", "1.2.3.4", 7, Reason.SPOOFED_SOURCE))
    with netlab.make_socket(box, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x07\x07\x04\0\0\0\0\0")
        sender.sendto(b"x", ("1.2.3.4", 7))
    recording.wait(denied("udp", "1.2.3.4", 7, Reason.IP_OPTIONS))


def test_a_forwarded_flow_is_told_when_it_begins_and_counted_when_it_ends(
    recording: Recording,
) -> None:
    box = recording.box(3, DENY_SOME)
    listener = recording.lab.listen(recording.lab.far, "0.0.0.0", 5000)
    expected = Subject("box3", "tcp", "1.2.3.4", 5000, None, True, Reason.DEFAULT_ALLOW, None)
    with netlab.make_socket(box, socket.SOCK_STREAM) as client:
        client.connect(("1.2.3.4", 5000))
        served, _ = listener.accept()
        with served:
            assert recording.wait(expected).count == 1
            client.sendall(bytes(3000))
            assert len(served.recv(3000, socket.MSG_WAITALL)) == 3000
            time.sleep(0.2)
            served.sendall(bytes(100))
            client.recv(100)
    recording.lab.network.remove(3)
    ended = recording.wait(expected)
    assert ended.count == 0
    assert 3000 < ended.sent < 3600 and 100 < ended.received < 600
    assert 150 <= ended.milliseconds < 5000


def test_the_time_in_which_a_closed_connection_is_remembered_does_not_count(
    recording: Recording,
) -> None:
    box = recording.box(3, DENY_SOME)
    listener = recording.lab.listen(recording.lab.far, "0.0.0.0", 5000)
    expected = Subject("box3", "tcp", "1.2.3.4", 5000, None, True, Reason.DEFAULT_ALLOW, None)
    with netlab.make_socket(box, socket.SOCK_STREAM) as client:
        client.connect(("1.2.3.4", 5000))
        served, _ = listener.accept()
        time.sleep(1.5)
    with served:
        assert served.recv(1) == b""
    recording.wait(expected)
    time.sleep(1.2)
    recording.lab.network.remove(3)
    ended = recording.wait(expected)
    # The kernel tells whole seconds of what is left of the time.
    assert 400 <= ended.milliseconds <= 2600


def test_one_sandbox_s_noise_is_limited_and_hides_nobody_else(recording: Recording) -> None:
    noisy, quiet = recording.box(3, DENY_SOME), recording.box(4, DENY_SOME)
    with netlab.make_socket(noisy, socket.SOCK_DGRAM) as sender:
        for _ in range(2000):
            with suppress(OSError):  # the refusals of those before
                sender.sendto(b"x", ("9.9.9.9", 9))
    assert netlab.tcp_outcome(quiet, "9.9.9.9", 443) == netlab.RESET
    told: Counter[str] = Counter()
    deadline = time.monotonic() + netlab.PATIENCE
    while not told["box4"]:
        assert time.monotonic() < deadline, told
        for subject, amount in recording.sums().items():
            told[subject.sandbox_id] += amount.count
        time.sleep(0.01)
    loud = told["box3"]
    untold = recording.lab.network.untold()
    assert 40 <= loud < 1000 and untold[3] > 500
    assert untold.get(4, 0) == 0


def test_traffic_of_no_known_sandbox_is_looked_at_again(recording: Recording) -> None:
    box = recording.lab.sandbox(3, DENY_SOME)
    assert netlab.tcp_outcome(box, "9.9.9.9", 443) == netlab.RESET
    deadline = time.monotonic() + netlab.PATIENCE
    while recording.recorder.gauges()["lost"] == 0 and not recording.recorder._later:
        assert time.monotonic() < deadline
        assert recording.sums() == {}
        time.sleep(0.01)
    entry = SandboxEntry("box3", recording.lab.network.address(3), DENY_SOME)
    recording.recorder.directory.set(entry)
    recording.recorder.look_again()
    recording.wait(denied("tcp", "9.9.9.9", 443, Reason.DENIED_ADDRESS, "9.9.9.0/24"))


def test_events_that_are_lost_are_counted_and_end_nothing(recording: Recording) -> None:
    assert recording.sockets.flows is not None
    box = recording.box(3, EgressPolicy())
    small = recording.sockets.flows
    with socket.socket(fileno=socket.dup(small.fileno())) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    with netlab.make_socket(box, socket.SOCK_DGRAM) as sender:
        for port in range(1, 200):
            sender.sendto(b"x", ("1.2.3.4", port))
    told = recording.sums()
    assert recording.recorder.lost >= 1 and 0 < len(told) < 199
    with netlab.make_socket(box, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("1.2.3.5", 9))
    recording.wait(Subject("box3", "udp", "1.2.3.5", 9, None, True, Reason.DEFAULT_ALLOW, None))


@pytest.mark.long
def test_thousands_of_sandboxes_leave_connection_tracking_as_it_was(recording: Recording) -> None:
    with inside(recording.lab.host), NetlinkSocket(NETLINK_NETFILTER) as netfilter:
        listener = recording.lab.listen(recording.lab.far, "0.0.0.0", 5000)
        box = recording.box(3, DENY_SOME)
        for turn in range(3000):
            policy = NAMES if turn % 2 else DENY_SOME
            recording.lab.network.apply(4 + turn % 50, policy)
            recording.lab.network.remove(4 + turn % 50)
            conntrack.forget(netfilter, saddr_mark(IPv4Address("198.18.9.9")))
            if turn % 100 == 0:
                assert netlab.tcp_outcome(box, "9.9.9.9", 443) == netlab.RESET
                assert netlab.tcp_outcome(box, "1.2.3.4", 5000) == netlab.OPEN
                listener.accept()[0].close()
                recording.sums()
    assert recording.recorder.lost == 0


def test_the_filter_lets_through_what_sandboxes_do_alone(recording: Recording) -> None:
    listener = recording.lab.listen(recording.lab.far, "0.0.0.0", 5000)
    assert netlab.tcp_outcome(recording.lab.host, "1.2.3.4", 5000) == netlab.OPEN
    listener.accept()[0].close()
    assert recording.sockets.flows is not None
    with pytest.raises(BlockingIOError):
        recording.sockets.flows.receive()
    assert len(flows.from_range(IPv4Network("198.18.0.0/16"))) % 8 == 0
