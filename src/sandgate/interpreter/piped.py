"""Kernels that take requests from a pipe: what is the same whichever program reads it."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod

from sandgate.interpreter import program
from sandgate.interpreter.kernel import Emit, KernelDiedError, Request, how_it_ended


class PipedKernel(ABC):
    """One process, and the pipe of its requests."""

    def __init__(self, process: program.Program, requests: program.Requests) -> None:
        self._process = process
        self._requests = requests
        self._closed = False

    @property
    def alive(self) -> bool:
        """See Kernel."""
        return not self._process.ended.done()

    async def execute(self, request: Request, emit: Emit) -> None:
        """See Kernel."""
        self._process.emit = emit
        try:
            await self._converse(request, emit)
        except BrokenPipeError:
            raise KernelDiedError(how_it_ended(await self._process.ended)) from None
        finally:
            self._process.emit = None

    @abstractmethod
    async def _converse(self, request: Request, emit: Emit) -> None:
        """Send a request and emit what becomes of it; what is printed is emitted meanwhile."""

    def interrupt(self) -> None:
        """See Kernel."""
        self._process.signal(signal.SIGINT)

    async def kill(self) -> None:
        """See Kernel."""
        if not self._closed:
            self._closed = True
            await self._process.kill()
            self._requests.close()
