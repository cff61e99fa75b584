"""The launcher: a small root process that forks sandboxes and holds their kernel state.

Single-threaded, driven by a selector. It keeps a few cells prepared; a create takes one, applies
limits and policy, and hands it its configuration. It knows no secret: those pass through as
descriptors, since whatever is in its memory is inherited by every sandbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sandgate.network import HostNetwork
from sandgate.policy import EgressPolicy
from sandgate.runtime import cell as inside
from sandgate.runtime.book import Book, Create, Pool
from sandgate.runtime.cells import (
    Base,
    Cell,
    CellFactory,
    CellKind,
    NoSlotError,
    State,
    group_name,
)
from sandgate.runtime.cgroups import Cgroups, Limits
from sandgate.runtime.disk_requests import DiskRequests
from sandgate.runtime.farewell import Cause, Farewells
from sandgate.runtime.freezing import Freezer
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Interpreters
from sandgate.runtime.keeping import Keeper
from sandgate.runtime.leaks import MOST_LEAKS, Leak, Leaks, Reaper
from sandgate.runtime.peers import Peers, Request, RequestError
from sandgate.runtime.protocol import SandboxSpec, checked_id, read_attachment
from sandgate.templates import TemplateError

_START_TIMEOUT_S = 10.0
_LULL_S = 0.012
"""The pool is refilled once nothing was asked for so long: who has just got a sandbox uses it now,
and preparing the next takes 15 ms of a core."""
_log = logging.getLogger(__name__)


class Launcher:
    """Serves requests until :meth:`stop` is called."""

    def __init__(
        self,
        *,
        factory: CellFactory,
        network: HostNetwork,
        cgroups: Cgroups,
        images: Images,
        leaks: Leaks,
        listener: socket.socket,
        find_base: Callable[[str], Base | None],
        interpreters: Callable[[selectors.BaseSelector], Interpreters],
        pool_size: int,
        pool_kind: CellKind,
        allowed_uids: frozenset[int],
    ) -> None:
        """`find_base` gives what a template's cells stand on, or None if there is none."""
        self._factory = factory
        self._network = network
        self._cgroups = cgroups
        self._find_base = find_base
        self._freezer = Freezer(cgroups, network)
        self._farewells = Farewells(network)
        self._images = images
        self._selector = selectors.DefaultSelector()
        self._keeper = Keeper(images, cgroups, self._freezer, self._selector)
        self._interpreters = interpreters(self._selector)
        self._book = Book()
        self._pool = Pool(self._book, pool_size, pool_kind)
        self._peers = Peers(self._selector, listener, allowed_uids, self._handle)
        self._reaper = Reaper(leaks, lambda: {cell.slot for cell in self._book.cells})
        self._stopping = False
        self._operations: dict[str, Callable[[Request], None]] = {
            "create": self._create,
            "kill": self._kill,
            "set_policy": self._set_policy,
            "pause": self._pause,
            "resume": self._resume,
            "running": self._list_running,
            "usage": self._usage,
            "untold": self._untold,
            "leaks": self._find_leaks,
            **DiskRequests(self._book, images, self._keeper, self._end).operations(),
        }

    def run(self, wakeup: socket.socket, adopted: Sequence[Cell]) -> None:
        """Serve. `wakeup` becomes readable on signals (see :func:`signal.set_wakeup_fd`).

        `adopted` are the cells that an earlier launcher left; their policies are in force.
        """
        self._peers.start()
        self._selector.register(wakeup, selectors.EVENT_READ, lambda: wakeup.recv(4096))
        for cell in adopted:
            self._book.cells.add(cell)
            assert cell.sandbox_id is not None
            self._book.by_sandbox[cell.sandbox_id] = cell
            self._watch(cell)
            if cell.door is not None:
                self._interpreters.watch(cell.door)
            self._settle(cell)
        while not self._stopping:
            short = self._pool.lacks() is not None
            events = self._selector.select(self._patience(short=short))
            for key, _ in events:
                key.data()
            self._expire_claims()
            self._farewells.work()
            self._freezer.work()
            self._keeper.work()
            self._interpreters.work()
            self._reaper.work()
            if short and not events:
                self._refill()
        for cell in list(self._book.cells):
            self._factory.end(cell)
        while self._book.cells:
            for key, _ in self._selector.select():
                key.data()
        self._interpreters.end()

    def stop(self) -> None:
        """Make :meth:`run` end all cells and return. For signal handlers: only sets a flag."""
        self._stopping = True

    # Requests

    def _handle(self, request: Request) -> None:
        operation = request.message["op"]
        handler = self._operations.get(operation)
        if handler is None:
            raise RequestError(f"unknown operation {operation!r}")
        handler(request)

    def _create(self, request: Request) -> None:
        spec_fd, config_fd = request.descriptors
        spec = SandboxSpec.from_json(read_attachment(spec_fd))
        if self._stopping:
            raise RequestError("the node is stopping")
        if spec.sandbox_id in self._book.by_sandbox:
            raise RequestError(f"sandbox {spec.sandbox_id} exists")
        kind = CellKind(spec.template, spec.disk_mb, spec.memory_mb)
        if spec.kept:
            cell = self._prepare(kind, self._images.kept(spec.sandbox_id))
        else:
            cell = self._book.unclaimed(kind) or self._prepare(kind)
        cell.sandbox_id = spec.sandbox_id
        cell.policy = spec.policy
        self._book.by_sandbox[spec.sandbox_id] = cell
        self._book.claims[cell] = Create(
            request, spec, os.dup(config_fd), time.monotonic() + _START_TIMEOUT_S
        )
        if request.message.get("announce") is True:
            request.announce({"address": str(self._factory.address(cell))})
        if not spec.kept:
            self._pool.prefer(kind)
        if cell.state is State.READY:
            self._start(cell)

    def _kill(self, request: Request) -> None:
        sandbox_id = request.sandbox_id
        self._images.forget(sandbox_id)
        cell = self._book.by_sandbox.get(sandbox_id)
        if cell is None:
            request.reply({})
            return
        self._book.kills.setdefault(cell, []).append(request)
        if len(self._book.kills[cell]) == 1:
            self._end(cell, Cause.ENDING)

    def _set_policy(self, request: Request) -> None:
        policy = EgressPolicy.from_json(read_attachment(request.descriptors[0]))
        cell = self._book.started(request.sandbox_id)
        self._network.change(cell.slot, cell.pid, cell.pidfd, policy)
        cell.policy = policy
        self._factory.remember(cell)
        request.reply({})

    def _pause(self, request: Request) -> None:
        sandbox_id = request.sandbox_id
        cell = self._book.started(sandbox_id)

        def freeze(refusal: str | None) -> None:
            if refusal is not None:
                done(refusal)
                return
            try:
                self._freezer.freeze(cell, done)
            except OSError as error:
                done(str(error))

        def done(failure: str | None) -> None:
            if failure is None:
                request.reply({})
                return
            request.refuse(f"sandbox {sandbox_id} was not paused: {failure}")
            if cell in self._book.cells:
                cell.paused = False
                self._factory.remember(cell)

        # Written down first: should this process die now, the next one finishes it.
        cell.paused = True
        self._factory.remember(cell)
        self._farewells.begin(cell, Cause.PAUSING, freeze)

    def _resume(self, request: Request) -> None:
        cell = self._book.started(request.sandbox_id)
        self._farewells.forget(cell, "it was resumed")
        self._freezer.thaw(cell, "it was resumed")
        cell.paused = False
        self._factory.remember(cell)
        request.reply({})

    def _end(self, cell: Cell, cause: Cause) -> None:
        """End a cell that is somebody's, whose clients are told first if it can tell them."""

        def end(refusal: str | None) -> None:
            if refusal is None:
                self._factory.end(cell)

        if cell.state is State.RUNNING and not cell.paused:
            self._farewells.begin(cell, cause, end)
        else:
            self._farewells.forget(cell, "it ends")
            self._factory.end(cell)

    def _list_running(self, request: Request) -> None:
        running = [
            self._factory.launched(cell).to_json()
            for cell in self._book.by_sandbox.values()
            if cell.state is State.RUNNING
        ]
        request.reply({"sandboxes": running})

    def _settle(self, cell: Cell) -> None:
        """Make an adopted cell what its record says."""
        if cell.paused:
            self._freezer.freeze(cell, lambda _: None)
        else:
            self._freezer.thaw(cell, "")

    def _usage(self, request: Request) -> None:
        """What those of the sandboxes use that are there."""
        found = {}
        for sandbox_id in map(checked_id, request.message["sandbox_ids"]):
            cell = self._book.by_sandbox.get(sandbox_id)
            if cell is not None and cell not in self._book.claims:
                with contextlib.suppress(OSError):  # it is just ending
                    found[sandbox_id] = self._factory.usage(cell).to_json()
        request.reply({"sandboxes": found})

    def _find_leaks(self, request: Request) -> None:
        """What is left of cells that are gone; or, given some of it, what of that was removed."""
        wanted = [Leak.from_json(item) for item in request.message.get("remove", ())]
        found = self._reaper.answer(wanted)[:MOST_LEAKS]
        request.reply({"leaks": [leak.to_json() for leak in found]})

    def _untold(self, request: Request) -> None:
        """How many refusals of each sandbox the kernel has counted and not told of."""
        by_slot = self._network.untold()
        found = {
            sandbox_id: by_slot[cell.slot]
            for sandbox_id, cell in self._book.by_sandbox.items()
            if cell.slot in by_slot
        }
        request.reply({"sandboxes": found})

    # Cells

    def _refill(self) -> None:
        kind = self._pool.lacks()
        assert kind is not None
        try:
            self._prepare(kind)
        except (RequestError, OSError, NoSlotError) as error:
            _log.error("no cell of template %s could be prepared: %s", kind.template, error)
            # Creates will try again and report; the pool must not spin.
            self._pool.give_up(kind)

    def _prepare(self, kind: CellKind, image: Path | None = None) -> Cell:
        try:
            base = self._find_base(kind.template)
        except TemplateError as error:
            raise RequestError(str(error)) from None
        if base is None:
            raise RequestError(f"template {kind.template} is not built on this node")
        try:
            cell = self._factory.prepare(kind, base, image)
        except NoSlotError as error:
            raise RequestError(str(error), "capacity") from None
        self._book.cells.add(cell)
        self._watch(cell)
        if base.interpreter:
            self._interpreters.prepare(base.layers)
        return cell

    def _watch(self, cell: Cell) -> None:
        self._selector.register(cell.pidfd, selectors.EVENT_READ, lambda: self._ended(cell))
        if cell.channel is not None:
            self._selector.register(cell.channel, selectors.EVENT_READ, lambda: self._hear(cell))

    def _hear(self, cell: Cell) -> None:
        """A cell says something over its channel."""
        if cell.channel is None:
            return  # it died, which was seen first of the events that came together
        descriptors: list[int] = []
        try:
            message, descriptors, _, _ = socket.recv_fds(cell.channel, inside.MAX_MESSAGE, 1)
        except OSError:
            message = b""
        if message.startswith(inside.READY):
            cell.state = State.READY
            for door in descriptors:
                assert cell.base is not None
                number = int(message.removeprefix(inside.READY))
                cell.door = self._factory.door(cell, door, number, cell.base.layers)
                self._interpreters.watch(cell.door)
            if cell in self._book.claims:
                self._start(cell)
            return
        self._forget_channel(cell)
        if message == inside.UP:
            self._started(cell)
        elif message.startswith(inside.FAILED):
            reason = message.removeprefix(inside.FAILED).decode(errors="replace")
            _log.error("a cell failed: %s", reason)
            self._fail_claim(cell, f"the sandbox could not be started: {reason}")
            self._pool.give_up(cell.kind)
            self._factory.end(cell)

    def _start(self, cell: Cell) -> None:
        claim = self._book.claims[cell]
        spec = claim.spec
        assert cell.channel is not None
        try:
            limits = Limits(spec.cpu_count, spec.memory_mb, spec.max_pids)
            self._cgroups.limit(group_name(cell.slot), limits)
            self._network.apply(cell.slot, spec.policy)
            self._factory.name(cell, spec.sandbox_id)
            cell.state = State.STARTING
            socket.send_fds(cell.channel, [spec.sandbox_id.encode()], [claim.config])
        except OSError as error:
            _log.error("a cell could not be started: %s", error, exc_info=True)
            self._fail_claim(cell, f"the sandbox could not be started: {error}")
            self._factory.end(cell)

    def _started(self, cell: Cell) -> None:
        claim = self._book.claims.pop(cell)
        os.close(claim.config)
        cell.state = State.RUNNING
        # Not before: a cell that cannot report ends, and a kept disk would be forgotten with it.
        self._factory.remember(cell)
        if claim.spec.kept:
            self._images.forget(claim.spec.sandbox_id)
        claim.request.reply(self._factory.launched(cell).to_json())

    def _patience(self, *, short: bool) -> float:
        """How long nothing need be looked at, unless something is heard. `short`: of cells."""
        waits = [self._reaper.patience(), *([_LULL_S] if short else [])]
        if self._book.claims:
            waits.append(1.0)
        under_way = (self._farewells, self._freezer, self._keeper, self._interpreters)
        waits += [wait for part in under_way if (wait := part.patience()) is not None]
        return min(waits)

    def _expire_claims(self) -> None:
        now = time.monotonic()
        late = [cell for cell, claim in self._book.claims.items() if claim.deadline < now]
        for cell in late:
            self._fail_claim(cell, f"the sandbox did not start within {_START_TIMEOUT_S:.0f} s")
            self._factory.end(cell)

    def _fail_claim(self, cell: Cell, reason: str) -> None:
        claim = self._book.claims.pop(cell, None)
        if claim is not None:
            os.close(claim.config)
            claim.request.refuse(reason)

    def _forget_channel(self, cell: Cell) -> None:
        assert cell.channel is not None
        self._selector.unregister(cell.channel)
        cell.channel.close()
        cell.channel = None

    def _ended(self, cell: Cell) -> None:
        """The cell's first process, and with it every other, has died."""
        self._selector.unregister(cell.pidfd)
        if cell.channel is not None:
            self._forget_channel(cell)
        self._fail_claim(cell, "the sandbox ended before it was ready")
        self._book.cells.discard(cell)
        self._farewells.forget(cell, "it ended")
        self._freezer.forget(cell, "it ended")
        if cell.door is not None:
            self._interpreters.forget(cell.door)
        try:
            self._factory.remove(cell)
        except OSError as error:
            _log.error("something of slot %d could not be removed: %s", cell.slot, error)
        waiting = self._book.kills.pop(cell, [])
        if cell.sandbox_id is not None:
            self._book.by_sandbox.pop(cell.sandbox_id, None)
            parks = self._book.parks.pop(cell, [])
            for report in parks:
                self._keeper.when_unmounted(cell.sandbox_id, report)
            if not waiting and not parks and cell.state is State.RUNNING:
                self._peers.tell_all({"event": "exit", "sandbox_id": cell.sandbox_id})
        for request in waiting:
            request.reply({})
