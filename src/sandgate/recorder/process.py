"""The process: opens its sockets as root, gives root up for good, then listens to the kernel.

It is not the gateway's work, because a sandbox can make the kernel announce flows faster than any
program reads them, and the gateway has other sandboxes to serve meanwhile. What comes too fast is
lost here, and counted; traffic waits for nothing.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import uvloop

from sandgate.decisions.feed import Feed
from sandgate.decisions.tally import Subject
from sandgate.egress.control import ControlServer, listen
from sandgate.egress.privileges import Identity, drop_privileges
from sandgate.egress.table import SandboxEntry
from sandgate.network import flows, nflog
from sandgate.network.config import FIRST_INDEX, FIRST_SANDBOX
from sandgate.network.limits import SHORT_LIVED
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER
from sandgate.network.refusals import REFUSALS_GROUP, TOLD_BYTES
from sandgate.policy import NetworkSet
from sandgate.recorder.directory import Directory
from sandgate.recorder.judge import Judge, Surroundings

_AT_ONCE = 64
"""Datagrams that are read before others get their turn."""
_ROUNDS = 4
"""Of the event loop: a line that was there is read in one, and taken note of in the next."""
_NICENESS = 10
"""The gateway and the sandboxes come first."""
_LATER_SECONDS = 0.5
"""When an announcement is looked at again whose sandbox was not known: that may be a new one."""
_MOST_LATER = 1000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """All that the recorder is told at its start, as one JSON object on standard input."""

    control_socket: Path
    decisions_socket: Path
    """Where the control process hears of decisions."""
    sandboxes: IPv4Network
    closed: tuple[IPv4Network, ...]
    """What no policy opens."""
    ingress_address: IPv4Address
    https_port: int
    user: str | None = None
    """User to run as. None: stay who we are, without capabilities."""
    control_user: str | None = None
    """Who may tell of sandboxes, besides root. None: `user`."""

    def to_json(self) -> str:
        """The form that :meth:`from_json` reads."""
        return json.dumps(
            {
                "control_socket": str(self.control_socket),
                "decisions_socket": str(self.decisions_socket),
                "sandboxes": str(self.sandboxes),
                "closed": [str(network) for network in self.closed],
                "ingress_address": str(self.ingress_address),
                "https_port": self.https_port,
                "user": self.user,
                "control_user": self.control_user,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> RecorderConfig:
        """Raises ValueError or KeyError on anything but what :meth:`to_json` writes."""
        data: dict[str, Any] = json.loads(text)
        return cls(
            control_socket=Path(data["control_socket"]),
            decisions_socket=Path(data["decisions_socket"]),
            sandboxes=IPv4Network(data["sandboxes"]),
            closed=tuple(IPv4Network(network) for network in data["closed"]),
            ingress_address=IPv4Address(data["ingress_address"]),
            https_port=int(data["https_port"]),
            user=None if data["user"] is None else str(data["user"]),
            control_user=None if data["control_user"] is None else str(data["control_user"]),
        )


@dataclass(slots=True)
class Recorder:
    """Reads what the kernel announces and feeds it on as decisions."""

    config: RecorderConfig
    directory: Directory
    judge: Judge
    feed: Feed = field(init=False)
    timeouts: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    """Announcements, or bursts of them, that the kernel could not hand over."""
    unattributed: int = 0
    """Announcements about no sandbox that is known."""
    _sequence: int | None = None
    _later: list[tuple[IPv4Address, Callable[[SandboxEntry], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.feed = Feed("recorder", self.config.decisions_socket, self.gauges)

    def gauges(self) -> dict[str, int]:
        """Numbers about this process."""
        return {
            "connections": self.judge.flows,
            "lost": self.lost,
            "unattributed": self.unattributed,
        }

    def packet(self, kind: int, payload: bytes) -> None:
        """A message of the packet log."""
        packet = nflog.parse(kind, payload)
        if packet is None:
            return
        if self._sequence is not None:
            self.lost += (packet.sequence - self._sequence - 1) & 0xFFFFFFFF
        self._sequence = packet.sequence
        if packet.interface < FIRST_INDEX:
            return  # not from a sandbox
        offset = packet.interface - FIRST_INDEX + FIRST_SANDBOX
        address = self.config.sandboxes.network_address + offset
        self._attribute(address, lambda sandbox: self._count(self.judge.refused(packet, sandbox)))

    def flow(self, kind: int, payload: bytes) -> None:
        """A message of connection tracking."""
        flow = flows.parse(kind, payload, self.timeouts)
        if flow is None:
            return
        if flow.begins:
            self._attribute(flow.source, lambda box: self._count(self.judge.began(flow, box)))
        elif (ended := self.judge.ended(flow, self.directory.find(flow.source))) is not None:
            subject, counted = ended
            self.feed.end(subject, flow.sent, flow.received, flow.milliseconds, counted=counted)

    def look_again(self) -> None:
        """Judge what could not be attributed before."""
        later, self._later = self._later, []
        for address, use in later:
            self._attribute(address, use, again=False)

    def read(self, source: NetlinkSocket, handle: Callable[[int, bytes], None]) -> None:
        """Read what there is, up to a bound."""
        for _ in range(_AT_ONCE):
            try:
                messages = source.receive()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost += 1
                continue
            for kind, payload in messages:
                handle(kind, payload)

    def _count(self, subject: Subject | None) -> None:
        if subject is not None:
            self.feed.begin(subject)

    def _attribute(
        self, address: IPv4Address, use: Callable[[SandboxEntry], None], *, again: bool = True
    ) -> None:
        sandbox = self.directory.find(address)
        if sandbox is not None:
            use(sandbox)
        elif again and len(self._later) < _MOST_LATER:
            self._later.append((address, use))
        else:
            self.unattributed += 1


@dataclass(frozen=True, slots=True)
class Sockets:
    """What has to be opened before root is given up. A source that the kernel lacks is None."""

    refusals: NetlinkSocket | None
    flows: NetlinkSocket | None
    control: socket.socket


def open_sockets(config: RecorderConfig, control: Identity) -> Sockets:
    """Open all sockets; the control socket last, since it says that the recorder is there.

    Raises OSError for the control socket alone: a node works without its log being whole.
    """
    refusals = _source("refusals", lambda sock: nflog.listen(sock, REFUSALS_GROUP, TOLD_BYTES))

    def subscribe(sock: NetlinkSocket) -> None:
        sock.attach_filter(flows.from_range(config.sandboxes))
        for group in (flows.GROUP_NEW, flows.GROUP_DESTROY):
            sock.subscribe(group)

    forwarded = _source("forwarded connections", subscribe)
    return Sockets(refusals, forwarded, listen(config.control_socket, control))


def _source(what: str, prepare: Callable[[NetlinkSocket], None]) -> NetlinkSocket | None:
    made = None
    try:
        made = NetlinkSocket(NETLINK_NETFILTER)
        prepare(made)
    except OSError as error:
        _logger.error("the kernel does not tell of %s: %s", what, error)
        if made is not None:
            made.close()
        return None
    return made


def idle_timeouts() -> dict[str, int]:
    """For how many seconds without a packet the kernel remembers flows of sandboxes.

    Of the network namespace that the calling thread is in. Raises OSError.
    """
    own = {state.lower(): seconds for state, seconds in SHORT_LIVED.seconds.items()}
    return flows.read_timeouts() | own


def watch(loop: asyncio.AbstractEventLoop, source: NetlinkSocket, read: Callable[[], None]) -> None:
    """Let `read` be called when there is something to read, and what else has come was handled.

    Nobody waits until the recorder has heard of a new policy. When the kernel announces what became
    of a packet under it, it has been told, but perhaps not read yet.
    """

    def readable() -> None:
        loop.remove_reader(source.fileno())
        wait(_ROUNDS)

    def wait(rounds: int) -> None:
        if rounds:
            loop.call_soon(wait, rounds - 1)
            return
        try:
            read()
        finally:
            loop.add_reader(source.fileno(), readable)

    loop.add_reader(source.fileno(), readable)


async def serve(config: RecorderConfig, sockets: Sockets, control: Identity) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    directory = Directory()
    ingress = (config.ingress_address, config.https_port)
    judge = Judge(Surroundings(NetworkSet(config.closed), ingress))
    recorder = Recorder(config, directory, judge, idle_timeouts())
    told = ControlServer(directory, config.sandboxes, {0, control.uid})
    stop = asyncio.Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_, stop.set)
    server = await told.serve(sockets.control)
    for source, handle in ((sockets.refusals, recorder.packet), (sockets.flows, recorder.flow)):
        if source is not None:
            watch(loop, source, partial(recorder.read, source, handle))

    async def look_again() -> None:
        while True:
            await asyncio.sleep(_LATER_SECONDS)
            recorder.look_again()

    work = [loop.create_task(recorder.feed.run()), loop.create_task(look_again())]
    gc.collect()
    gc.freeze()  # what was loaded stays; collections need not look at it again
    _logger.info("recording")
    await stop.wait()
    server.close()
    for task in work:
        task.cancel()
    recorder.feed.close()


def run(config: RecorderConfig) -> None:
    """Run the recorder with `config`. Raises ValueError or OSError if it cannot start."""
    identity = Identity.of(config.user)
    control = Identity.of(config.control_user or config.user)
    sockets = open_sockets(config, control)
    os.nice(_NICENESS)
    drop_privileges(identity)
    uvloop.run(serve(config, sockets, control))
