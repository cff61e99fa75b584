"""The launcher: a small root process that holds the kernel state of sandboxes.

Single-threaded, driven by a selector. It keeps cells prepared, which the assembler makes and the
mould forks; a create takes one, applies limits and policy, and hands it its configuration. It knows
no secret: those pass through as descriptors.
"""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from collections.abc import Callable, Sequence

from sandgate.network import HostNetwork
from sandgate.policy import EgressPolicy
from sandgate.runtime.book import Book
from sandgate.runtime.cells import Base, Cell, State
from sandgate.runtime.cgroups import Cgroups
from sandgate.runtime.children import Child
from sandgate.runtime.creation import Creation
from sandgate.runtime.disk_requests import DiskRequests
from sandgate.runtime.factory import CellFactory
from sandgate.runtime.farewell import Cause, Farewells
from sandgate.runtime.freezing import Freezer
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Interpreters
from sandgate.runtime.jobs import Site
from sandgate.runtime.keeping import Keeper
from sandgate.runtime.leaks import MOST_LEAKS, Leak, Leaks, Reaper
from sandgate.runtime.peers import Peers, Request, RequestError
from sandgate.runtime.pool import Pool
from sandgate.runtime.protocol import checked_id, read_attachment

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
        pool: Pool,
        maker: Child,
        site: Site,
        allowed_uids: frozenset[int],
    ) -> None:
        """`find_base` gives what a template's cells stand on, or None if there is none."""
        self._factory = factory
        self._network = network
        self._freezer = Freezer(cgroups, network)
        self._farewells = Farewells(network)
        self._images = images
        self._selector = selectors.DefaultSelector()
        self._keeper = Keeper(images, cgroups, self._freezer, self._selector)
        self._interpreters = interpreters(self._selector)
        self._book = Book()
        self._creation = Creation(
            book=self._book,
            pool=pool,
            factory=factory,
            maker=maker,
            site=site,
            network=network,
            images=images,
            interpreters=self._interpreters,
            selector=self._selector,
            find_base=find_base,
            watch=self._watch,
        )
        self._peers = Peers(self._selector, listener, allowed_uids, self._handle)
        self._reaper = Reaper(leaks, self._live)
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
            self._book.add(cell)
            assert cell.sandbox_id is not None
            self._book.by_sandbox[cell.sandbox_id] = cell
            self._watch(cell)
            if cell.door is not None:
                self._interpreters.watch(cell.door)
            self._settle(cell)
        while not self._stopping:
            for key, _ in self._selector.select(self._patience()):
                key.data()
            self._creation.work()
            self._farewells.work()
            self._freezer.work()
            self._keeper.work()
            self._interpreters.work()
            self._reaper.work()
        self._creation.stop()
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
        self._creation.disturbed()
        operation = request.message["op"]
        handler = self._operations.get(operation)
        if handler is None:
            raise RequestError(f"unknown operation {operation!r}")
        handler(request)

    def _create(self, request: Request) -> None:
        if self._stopping:
            raise RequestError("the node is stopping")
        self._creation.create(request)

    def _kill(self, request: Request) -> None:
        sandbox_id = request.sandbox_id
        self._images.forget(sandbox_id)
        self._creation.withdraw(sandbox_id, "it was ended")
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

    def _watch(self, cell: Cell) -> None:
        self._selector.register(cell.pidfd, selectors.EVENT_READ, lambda: self._ended(cell))

    def _live(self) -> set[int]:
        """The slots that are in use."""
        return {cell.slot for cell in self._book.cells} | self._creation.slots()

    def _patience(self) -> float:
        """How long nothing need be looked at, unless something is heard."""
        parts = (
            *(self._creation, self._farewells, self._freezer),
            *(self._keeper, self._interpreters, self._reaper),
        )
        return min(wait for part in parts if (wait := part.patience()) is not None)

    def _ended(self, cell: Cell) -> None:
        """The cell's first process, and with it every other, has died."""
        self._selector.unregister(cell.pidfd)
        self._book.remove(cell)
        self._creation.ended(cell)
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
