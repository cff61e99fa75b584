"""An event loop that is made before a fork and used after it.

What is made once need not be made, nor its memory be touched, in each of a thousand forks. The two
things of a loop that a fork would share with its parent are the kernel's: the epoll instance, and
the pair of sockets by which a signal wakes it. Both are replaced.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
from collections.abc import Mapping
from typing import Any


class _Selector(selectors.BaseSelector):
    """One of epoll that can be renewed."""

    def __init__(self) -> None:
        self._inner = selectors.EpollSelector()

    def renew(self) -> None:
        """Watch the same descriptors by an epoll instance of this process alone."""
        old, self._inner = self._inner, selectors.EpollSelector()
        for key in old.get_map().values():
            self._inner.register(key.fileobj, key.events, key.data)
        old.close()

    def fileno(self) -> int:
        return self._inner.fileno()

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._inner.modify(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return self._inner.select(timeout)

    def close(self) -> None:
        self._inner.close()

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._inner.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._inner.get_map()


class InheritedLoop:
    """The loop, and how a fork makes it its own."""

    def __init__(self) -> None:
        """To be called with no signal handlers set by any loop."""
        self._selector = _Selector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        (self._reader,) = (key.fd for key in self._selector.get_map().values())
        # The other end of the pair is told only to who sets a handler.
        self.loop.add_signal_handler(signal.SIGUSR2, _nothing)
        self._writer = signal.set_wakeup_fd(-1)
        self.loop.remove_signal_handler(signal.SIGUSR2)
        signal.set_wakeup_fd(-1)

    def renew(self) -> None:
        """Share nothing with the process that this one was forked from, or with its other forks.

        To be called once, before the loop runs. Raises OSError.
        """
        for new, number in zip(socket.socketpair(), (self._reader, self._writer), strict=True):
            with new:
                new.setblocking(False)
                os.dup2(new.fileno(), number, inheritable=False)
        self._selector.renew()

    def descriptors(self) -> set[int]:
        """What must stay open in this process."""
        return {self._selector.fileno(), self._reader, self._writer}


def _nothing() -> None:
    """Stands for a handler."""
