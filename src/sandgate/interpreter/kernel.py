"""What a kernel is to the server, whatever it is made of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sandgate.interpreter.messages import Event

Emit = Callable[[Event], Awaitable[None]]


class KernelDiedError(Exception):
    """The kernel has ended. The text says how."""


class KernelStartError(Exception):
    """No kernel could be started. The text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to execute."""

    code: str
    env: Mapping[str, str]
    """Variables that are set meanwhile."""
    lasting: Mapping[str, str]
    """Variables that are set from now on."""


class Kernel(Protocol):
    """A started kernel. One execution at a time."""

    @property
    def alive(self) -> bool:
        """Whether it takes another request: its process has neither ended nor been told to."""

    async def execute(self, request: Request, emit: Emit) -> None:
        """Run code and emit all that it says and is. Raises KernelDiedError."""

    def interrupt(self) -> None:
        """Ask what runs to stop."""

    async def kill(self) -> None:
        """End it and all it started. May be called again."""


def how_it_ended(status: int) -> str:
    """For people: an exit code, or the negative number of a signal."""
    if status == -9:
        return "it was killed (by itself, by other code, or because memory ran out)"
    if status < 0:
        return f"it was ended by signal {-status}"
    return f"it ended itself with exit code {status}"
