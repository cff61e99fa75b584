"""The launcher's end of the assembler: jobs that were given, and what becomes of them."""

from __future__ import annotations

import errno
import logging
import selectors
from collections import deque
from collections.abc import Callable

from sandgate.runtime.children import Child
from sandgate.runtime.jobs import Job, Made, Site

_AT_ONCE = 2
"""Jobs that the process has: one to work at, and the next."""
_MODULE = "sandgate.runtime.assembly"

_log = logging.getLogger(__name__)


def start_assembler() -> Child:
    """Start the process, which has much to import. Raises OSError.

    To be called in the launcher's own mount namespace and in the node's network namespace.
    """
    return Child(_MODULE)


class Assembler:
    """Belongs to the launcher's loop. The process is made again should it have died."""

    def __init__(
        self,
        child: Child,
        site: Site,
        selector: selectors.BaseSelector,
        told: Callable[[Made], None],
        clear: Callable[[int], None],
    ) -> None:
        """:param child: from :func:`start_assembler`.
        :param told: hears what became of each job; `ECONNRESET`: the process died over it.
        :param clear: removes what may be there of a slot whose job was not finished.

        Raises OSError.
        """
        self._site = site
        self._selector = selector
        self._told = told
        self._clear = clear
        self._waiting: deque[Job] = deque()
        self._given: dict[int, Job] = {}
        """By slot, oldest first."""
        self._child: Child | None = None
        self._employ(child)

    def give(self, job: Job) -> None:
        """Have a cell made. Raises OSError if there is no process to do it."""
        self._start()
        self._waiting.append(job)
        self._hand_on()

    def end(self) -> None:
        """End the process, once it has finished what it is at, and remove that. Cells live on."""
        self._waiting.clear()
        self._close()

    def _start(self) -> None:
        if self._child is None:
            self._employ(start_assembler())

    def _employ(self, child: Child) -> None:
        self._selector.register(child.channel, selectors.EVENT_READ, self._hear)
        self._child = child
        child.channel.send(self._site.encode())

    def _hand_on(self) -> None:
        while self._waiting and len(self._given) < _AT_ONCE:
            job = self._waiting.popleft()
            try:
                self._start()
                assert self._child is not None
                self._child.channel.send(job.encode())
            except ConnectionError:
                self._waiting.appendleft(job)
                return  # its end is heard of next
            except OSError as error:
                self._told(Made(job.slot, 0, error.errno or 0, str(error), ()))
            else:
                self._given[job.slot] = job

    def _hear(self) -> None:
        assert self._child is not None
        made = Made.receive(self._child.channel)
        if made is not None:
            del self._given[made.slot]
            self._told(made)
        else:
            _log.error("the process that assembles cells has died")
            for slot in self._close():
                self._told(Made(slot, 0, errno.ECONNRESET, "its maker died", ()))
        self._hand_on()

    def _close(self) -> list[int]:
        """Returns the slots whose jobs were not finished, of which nothing is left."""
        if self._child is not None:
            self._selector.unregister(self._child.channel)
            self._child.end()
            self._child = None
        slots = list(self._given)
        self._given.clear()
        for slot in slots:
            self._clear(slot)
        return slots
