"""What a build shows while it runs: a bar on a terminal, one line a step elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Reporter(Protocol):
    """Receives the progress of one build after another."""

    def phase(self, template: str, label: str, fraction: float) -> None:
        """`label` is what happens now; `fraction` (0 to 1) how much of the build is done."""

    def done(self, template: str, summary: str) -> None:
        """The template is built, or was already."""

    def note(self, text: str) -> None:
        """Something the user should know, such as why nothing moves."""


class LineReporter:
    """One line for each step, with the seconds since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._last = ("", "")

    def phase(self, template: str, label: str, fraction: float) -> None:
        if (template, label) != self._last:
            self._last = (template, label)
            self._line(f"{template}: {label} ({time.monotonic() - self._started:.0f} s)")

    def done(self, template: str, summary: str) -> None:
        self._line(f"{template}: {summary}")

    def note(self, text: str) -> None:
        self._line(text)

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class BarReporter:
    """A moving bar with percentage, step and elapsed time."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[template]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def phase(self, template: str, label: str, fraction: float) -> None:
        if self._task is None:
            self._task = self._progress.add_task(label, total=1.0, template=template)
            self._progress.start()
        self._progress.update(self._task, description=label, completed=fraction)

    def done(self, template: str, summary: str) -> None:
        self.close()
        self._progress.console.print(f"{template}: {summary}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._task is not None:
            self._progress.stop()
            self._progress.remove_task(self._task)
            self._task = None


class ConsoleReporter:
    """Context manager that gives the reporter fit for standard error, and tidies the terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = BarReporter(self._console) if self._console.is_terminal else None

    def __enter__(self) -> Reporter:
        return self._bar if self._bar is not None else LineReporter(self._console)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()
