"""Create requests: each gets a prepared cell, or waits its turn for one that is made for it."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from sandgate.network import HostNetwork
from sandgate.runtime import cell_channel as inside
from sandgate.runtime.assembler import Assembler
from sandgate.runtime.book import Book, Create
from sandgate.runtime.cells import Base, Cell, CellKind, State
from sandgate.runtime.children import Child
from sandgate.runtime.factory import CellFactory
from sandgate.runtime.images import Images
from sandgate.runtime.interpreters import Interpreters
from sandgate.runtime.jobs import Made, Site
from sandgate.runtime.peers import Request, RequestError, kind_of_failure
from sandgate.runtime.pool import Pool
from sandgate.runtime.protocol import SandboxSpec, read_attachment
from sandgate.runtime.slots import NoSlotError
from sandgate.templates import TemplateError

_START_TIMEOUT_S = 10.0
_LULL_S = 0.012
_FIRST_USE_S = 0.008
"""The pool is refilled once nothing was asked for so long, and a while later for each sandbox that
was asked for: who has just got one uses it now, and preparing the next takes a core for as long."""
_REFILL_AT_ONCE = 2
_ATTEMPTS = 3

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Preparation:
    """A job under way."""

    kind: CellKind
    base: Base
    create: Create | None
    """Whose disk it is made with; None: it is for whoever comes first."""
    attempt: int = 1


class Creation:
    """Belongs to the launcher's loop, which calls :meth:`work`."""

    def __init__(
        self,
        *,
        book: Book,
        pool: Pool,
        factory: CellFactory,
        maker: Child,
        site: Site,
        network: HostNetwork,
        images: Images,
        interpreters: Interpreters,
        selector: selectors.BaseSelector,
        find_base: Callable[[str], Base | None],
        watch: Callable[[Cell], None],
    ) -> None:
        """:param maker: from :func:`~sandgate.runtime.assembler.start_assembler`.
        :param find_base: gives what a template's cells stand on, or None if there is none.
        :param watch: sees to it that :meth:`ended` is called once a cell has died.
        """
        self._book = book
        self._pool = pool
        self._factory = factory
        self._network = network
        self._images = images
        self._interpreters = interpreters
        self._selector = selector
        self._find_base = find_base
        self._watch = watch
        self._assembler = Assembler(maker, site, selector, self._made, factory.clear)
        self._under_way: dict[int, _Preparation] = {}
        """By slot."""
        self._quiet_from = 0.0

    def stop(self) -> None:
        """Refuse those who wait, and prepare no more. Cells live on."""
        for sandbox_id in list(self._book.waiting):
            self.withdraw(sandbox_id, "the node is stopping")
        self._assembler.end()

    def slots(self) -> set[int]:
        """Those of the cells that are being made."""
        return set(self._under_way)

    def create(self, request: Request) -> None:
        """A request of the launcher's socket."""
        spec_fd, config_fd = request.descriptors
        spec = SandboxSpec.from_json(read_attachment(spec_fd))
        if spec.sandbox_id in self._book.by_sandbox or spec.sandbox_id in self._book.waiting:
            raise RequestError(f"sandbox {spec.sandbox_id} exists")
        create = Create(request, spec, os.dup(config_fd), time.monotonic() + _START_TIMEOUT_S)
        self._book.waiting[spec.sandbox_id] = create
        if spec.kept:
            self._try_to_order(create)
            return
        self._quiet_from += _FIRST_USE_S
        self._pool.prefer(create.kind)
        if (cell := self._book.ready(create.kind)) is not None:
            self._claim(cell, create)
        else:
            self._supply()

    def withdraw(self, sandbox_id: str, reason: str) -> bool:
        """Refuse a request that still waits for its cell. Returns whether there was one."""
        create = self._book.waiting.get(sandbox_id)
        if create is None:
            return False
        self._refuse(create, reason)
        return True

    def disturbed(self) -> None:
        """Something was asked for: preparing cells that nobody waits for waits."""
        self._quiet_from = max(self._quiet_from, time.monotonic() + _LULL_S)

    def patience(self) -> float | None:
        """Seconds until :meth:`work` has something to do; None: only once something is heard."""
        if self._book.waiting or self._book.claims:
            return 1.0
        if not self._may_prepare():
            return None
        have = self._have()
        if self._pool.lacks(have) is None and self._pool.superfluous(have) is None:
            return None
        return max(0.0, self._quiet_from - time.monotonic())

    def work(self) -> None:
        """Refuse what has waited too long; refill the pool while nobody waits."""
        now = time.monotonic()
        late = f"the sandbox did not start within {_START_TIMEOUT_S:.0f} s"
        for create in list(self._book.waiting.values()):
            if create.deadline < now:
                self._refuse(create, late)
        for cell, create in list(self._book.claims.items()):
            if create.deadline < now:
                self._fail(cell, late)
                self._factory.end(cell)
        if self._quiet_from <= now and self._may_prepare():
            have = self._have()
            if (kind := self._pool.lacks(have)) is not None:
                self._refill(kind)
            elif (kind := self._pool.superfluous(have)) is not None:
                self._drop_one(kind)

    def ended(self, cell: Cell) -> None:
        """The cell's first process has died, and the cell is no longer in the book."""
        if cell.channel is not None:
            self._forget_channel(cell)
        self._fail(cell, "the sandbox ended before it was ready")
        self._supply()

    # Cells that are made

    def _may_prepare(self) -> bool:
        """Whether there is time for cells that nobody waits for."""
        if self._book.waiting or self._book.claims:
            return False
        return len(self._book.preparing) + len(self._under_way) < _REFILL_AT_ONCE

    def _have(self) -> Counter[CellKind]:
        """The cells that are anybody's or will be, by kind."""
        have = self._book.count_spare()
        have.update(one.kind for one in self._under_way.values() if one.create is None)
        return have

    def _supply(self) -> None:
        """Have as many cells made as there are requests waiting for one."""
        have = self._have()
        for create in list(self._book.waiting.values()):
            if create.spec.kept:
                continue
            if have[create.kind] > 0:
                have[create.kind] -= 1
            else:
                self._try_to_order(create)

    def _try_to_order(self, create: Create) -> None:
        """Have a cell made for a request, which is refused if that cannot be."""
        try:
            self._order(create.kind, create if create.spec.kept else None)
        except RequestError as error:
            self._refuse(create, str(error), error.kind)

    def _refill(self, kind: CellKind) -> None:
        try:
            self._order(kind)
        except RequestError as error:
            self._not_prepared(kind, str(error))

    def _order(self, kind: CellKind, create: Create | None = None, attempt: int = 1) -> None:
        """Raises RequestError."""
        try:
            base = self._find_base(kind.template)
        except TemplateError as error:
            raise RequestError(str(error)) from None
        if base is None:
            raise RequestError(f"template {kind.template} is not built on this node")
        image = None if create is None else self._images.kept(create.spec.sandbox_id)
        try:
            job = self._factory.job(kind, base, image)
        except NoSlotError as error:
            raise RequestError(str(error), "capacity") from None
        try:
            self._assembler.give(job)
        except OSError as error:
            self._factory.give_up(job.slot)
            raise RequestError(str(error), kind_of_failure(error.errno)) from None
        self._under_way[job.slot] = _Preparation(kind, base, create, attempt)
        if base.interpreter:
            self._interpreters.prepare(base.layers)

    def _made(self, made: Made) -> None:
        """The assembler has done a job, or failed."""
        task = self._under_way.pop(made.slot)
        if made.pid == 0:
            self._factory.give_up(made.slot)
            self._not_made(task, made)
            return
        cell = self._factory.take(made, task.kind, task.base)
        self._book.add(cell)
        assert cell.channel is not None
        self._selector.register(cell.channel, selectors.EVENT_READ, lambda: self._hear(cell))
        self._watch(cell)
        if task.create is not None:
            cell.parked = True  # until it runs, its disk is still the sandbox's that was kept
            if self._waits(task.create):
                self._claim(cell, task.create)
            else:
                self._factory.end(cell)

    def _not_made(self, task: _Preparation, made: Made) -> None:
        wanted = task.create or self._book.first_waiting(task.kind)
        reason = made.reason
        if made.errno == errno.ECONNRESET and task.attempt < _ATTEMPTS:
            try:
                self._order(task.kind, task.create, task.attempt + 1)
            except RequestError as error:
                reason = str(error)
            else:
                return
        if wanted is None:
            self._not_prepared(task.kind, reason)
        elif self._waits(wanted):
            self._refuse(wanted, reason, kind_of_failure(made.errno))

    def _not_prepared(self, kind: CellKind, reason: str) -> None:
        """Creates will try again and report; the pool must not spin."""
        _log.error("no cell of template %s could be prepared: %s", kind.template, reason)
        self._pool.give_up(kind)

    def _drop_one(self, kind: CellKind) -> None:
        cell = self._book.ready(kind)
        if cell is not None:
            self._book.take(cell)
            cell.state = State.ENDING
            self._factory.end(cell)

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
            self._ready(cell, message, descriptors)
            return
        self._forget_channel(cell)
        if message == inside.UP:
            self._up(cell)
        elif message.startswith(inside.FAILED):
            self._failed(cell, message.removeprefix(inside.FAILED).decode(errors="replace"))

    def _ready(self, cell: Cell, message: bytes, descriptors: list[int]) -> None:
        self._book.stands(cell)
        for door in descriptors:
            assert cell.base is not None
            number = int(message.removeprefix(inside.READY))
            cell.door = self._factory.door(cell, door, number, cell.base.layers)
            self._interpreters.watch(cell.door)
        if cell in self._book.claims:
            self._start(cell)
        elif cell.sandbox_id is None and not cell.parked:
            create = self._book.first_waiting(cell.kind)
            if create is not None:
                self._claim(cell, create)

    def _failed(self, cell: Cell, reason: str) -> None:
        _log.error("a cell failed: %s", reason)
        told = f"the sandbox could not be started: {reason}"
        if cell.sandbox_id is not None:
            self._fail(cell, told)
        elif (create := self._book.first_waiting(cell.kind)) is not None:
            self._refuse(create, told)
        if cell.kind is not None:
            self._pool.give_up(cell.kind)
        self._factory.end(cell)

    # Cells that somebody has

    def _claim(self, cell: Cell, create: Create) -> None:
        del self._book.waiting[create.spec.sandbox_id]
        self._book.take(cell)
        cell.sandbox_id = create.spec.sandbox_id
        cell.policy = create.spec.policy
        self._book.by_sandbox[cell.sandbox_id] = cell
        self._book.claims[cell] = create
        if create.request.message.get("announce") is True:
            create.request.announce({"address": str(self._factory.address(cell))})
        if cell.state is State.READY:
            self._start(cell)

    def _start(self, cell: Cell) -> None:
        create = self._book.claims[cell]
        spec = create.spec
        assert cell.channel is not None
        try:
            self._network.apply(cell.slot, spec.policy)
            self._factory.name(cell, spec.sandbox_id)
            cell.state = State.STARTING
            socket.send_fds(cell.channel, [spec.sandbox_id.encode()], [create.config])
        except OSError as error:
            _log.error("a cell could not be started: %s", error, exc_info=True)
            self._fail(cell, f"the sandbox could not be started: {error}")
            self._factory.end(cell)

    def _up(self, cell: Cell) -> None:
        create = self._book.claims.pop(cell, None)
        if create is None:
            return  # it came too late: its request was refused, and it is being ended
        os.close(create.config)
        cell.state = State.RUNNING
        cell.parked = False
        # Not before: a cell that cannot report ends, and a kept disk would be forgotten with it.
        self._factory.remember(cell)
        if create.spec.kept:
            self._images.forget(create.spec.sandbox_id)
        create.request.reply(self._factory.launched(cell).to_json())

    def _fail(self, cell: Cell, reason: str) -> None:
        """Refuse the request that has this cell, if one has."""
        create = self._book.claims.pop(cell, None)
        if create is not None:
            os.close(create.config)
            create.request.refuse(reason)

    def _refuse(self, create: Create, reason: str, kind: str = "failed") -> None:
        """Refuse a request that has no cell."""
        del self._book.waiting[create.spec.sandbox_id]
        os.close(create.config)
        create.request.refuse(reason, kind)

    def _waits(self, create: Create) -> bool:
        return self._book.waiting.get(create.spec.sandbox_id) is create

    def _forget_channel(self, cell: Cell) -> None:
        assert cell.channel is not None
        self._selector.unregister(cell.channel)
        cell.channel.close()
        cell.channel = None
