"""Contexts: kernels by id, one execution at a time in each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field

from sandgate.interpreter import bash, environment, javascript, jupyter, messages
from sandgate.interpreter.forks import Forks
from sandgate.interpreter.kernel import (
    Kernel,
    KernelDiedError,
    KernelStartError,
    Request,
)
from sandgate.interpreter.sink import Sink

_ALIASES = {"js": "javascript", "ts": "typescript", "py": "python", "sh": "bash"}
LANGUAGES = ("python", "javascript", "typescript", "r", "bash")
_PATIENCE_S = 4.0
"""How long code may go on after an interrupt before the next one, and then the end."""

Variables = Mapping[str, str]


class NoContextError(Exception):
    """There is no such context. The text is for the client."""


class BadRequestError(Exception):
    """Something cannot be had. The text says what could."""


def language_of(name: object) -> str:
    """The language that a client means. Raises BadRequestError."""
    known = ", ".join(LANGUAGES)
    if not isinstance(name, str):
        raise BadRequestError(f"language: must be one of {known}, not {name!r:.80}")
    language = _ALIASES.get(name.lower(), name.lower())
    if language not in LANGUAGES:
        raise BadRequestError(f"language {name!r:.80} is not offered; there are {known}")
    return language


@dataclass(slots=True, eq=False)
class Context:
    """One context. Its kernel is started when it is first needed, and anew when it died."""

    language: str
    cwd: str
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    kernel: Kernel | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by what runs."""
    running: asyncio.Task[object] | None = None
    """Which execution has the kernel."""
    told: Variables | None = None
    """The sandbox's variables, once the kernel knows them."""
    fate: tuple[str, str] | None = None
    """Name and text of the error that whoever runs now shall see: it is being restarted."""

    def to_json(self) -> dict[str, str]:
        """As clients see it."""
        return {"id": self.id, "language": self.language, "cwd": self.cwd}


class Contexts:
    """All contexts of the sandbox."""

    def __init__(self, forks: Forks) -> None:
        self._forks = forks
        self._all: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for language in ("python", "javascript"):
            self.default(language)

    def list(self) -> list[Context]:
        """In the order in which they were made."""
        return list(self._all.values())

    def get(self, context_id: str) -> Context:
        """Raises NoContextError."""
        if context_id not in self._all:
            raise NoContextError(f"Context {context_id:.80} not found")
        return self._all[context_id]

    def default(self, language: str) -> Context:
        """The context of those who name none."""
        found = self._defaults.get(language)
        if found is None:
            found = self._defaults[language] = Context(language, environment.WORKDIR)
            self._all[found.id] = found
        return found

    async def create(self, language: str, cwd: str, variables: Variables | None) -> Context:
        """A context with a started kernel. Raises BadRequestError or KernelStartError."""
        if not os.path.isdir(cwd):
            raise BadRequestError(f"cwd: {cwd!r:.200} is not a directory")
        context = Context(language, cwd)
        await self._start(context, variables)
        self._all[context.id] = context
        return context

    async def restart(self, context: Context) -> None:
        """A fresh kernel; what runs ends with an error. Raises KernelStartError."""
        await self._end(context, "ContextRestarting", "the context was restarted")
        async with context.lock:
            if context.kernel is None:
                await self._start(context, context.told)

    async def remove(self, context: Context) -> None:
        """End a context; what runs ends with an error."""
        self._all.pop(context.id, None)
        for language in [k for k, v in self._defaults.items() if v is context]:
            del self._defaults[language]
        await self._end(context, "ContextRemoved", "the context was removed")

    async def execute(
        self, context: Context, code: str, env: Variables, variables: Variables | None, sink: Sink
    ) -> None:
        """Run code and put all lines but the last. Errors are lines as well."""
        async with context.lock:
            if self._all.get(context.id) is not context:
                await sink.put(messages.error("ContextRemoved", "the context was removed"))
                return
            context.fate = None
            context.running = asyncio.current_task()
            try:
                if context.kernel is not None and not context.kernel.alive:
                    await self._drop_kernel(context)  # it died after the last execution
                if context.kernel is None:
                    await self._start(context, variables)
                lasting: Variables = {}
                if variables is not None and context.told != variables:
                    lasting, context.told = variables, variables
                assert context.kernel is not None
                await context.kernel.execute(Request(code, env, lasting), sink.put)
            except KernelStartError as error:
                await sink.put(messages.error("KernelStartError", str(error)))
            except KernelDiedError as error:
                await self._drop_kernel(context)
                name, text = context.fate or (
                    "UnexpectedEndOfExecution",
                    f"the {context.language} kernel ended: {error}; its variables are gone, and "
                    "the next call starts a new one",
                )
                await sink.put(messages.error(name, text))
            finally:
                context.running = None

    def prepare(self, context: Context) -> None:
        """Begin to start the kernel that is about to be needed."""
        if context.kernel is None and not context.lock.locked():
            self._background(self._prepare(context))

    async def _prepare(self, context: Context) -> None:
        async with context.lock:
            with contextlib.suppress(KernelStartError):  # who needs it will see
                if context.kernel is None and self._all.get(context.id) is context:
                    await self._start(context, None)

    def abandon(self, context: Context, running: asyncio.Task[None]) -> None:
        """Nobody waits for an execution any more: stop it, or take it out of the queue."""
        self._background(self._stop(context, running))

    def _background(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _stop(self, context: Context, running: asyncio.Task[None]) -> None:
        for _ in range(2):
            if context.running is not running:
                running.cancel()
            elif context.kernel is not None:
                context.kernel.interrupt()
            await asyncio.wait([running], timeout=_PATIENCE_S)
            if running.done():
                return
        if context.kernel is not None:
            await context.kernel.kill()
        await asyncio.wait([running])

    async def _end(self, context: Context, name: str, text: str) -> None:
        context.fate = (name, text)
        if context.lock.locked() and context.kernel is not None:
            await context.kernel.kill()  # who runs it sees it die, and drops it
        async with context.lock:
            await self._drop_kernel(context)

    async def _drop_kernel(self, context: Context) -> None:
        if context.kernel is not None:
            await context.kernel.kill()
            context.kernel = None
            context.told = None

    async def _start(self, context: Context, variables: Variables | None) -> None:
        cwd, env = context.cwd, variables or {}
        starters: Mapping[str, Callable[[], Awaitable[Kernel]]] = {
            "python": lambda: jupyter.start_python(self._forks, cwd, env),
            "javascript": lambda: javascript.start(cwd, env, typescript=False),
            "typescript": lambda: javascript.start(cwd, env, typescript=True),
            "r": lambda: jupyter.start_r(cwd, env),
            "bash": lambda: bash.start(cwd, env),
        }
        context.kernel = await starters[context.language]()
        context.told = variables
