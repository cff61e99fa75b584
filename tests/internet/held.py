"""What is set up when it is entered, and taken away at the end or where setting up fails."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Held(ABC):
    """A context manager whose `close` also cleans up after an `open` that failed half-way."""

    @abstractmethod
    def open(self) -> None:
        """Set everything up."""

    @abstractmethod
    def close(self) -> None:
        """Take away whatever is there. May be called twice."""

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
