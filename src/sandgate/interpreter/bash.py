"""bash: an interactive one without a terminal, so that an interrupt ends a command and not it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from sandgate.interpreter import messages, program
from sandgate.interpreter.kernel import Emit, Request
from sandgate.interpreter.piped import PipedKernel

_BEGIN = "unset HISTFILE PS1 PS2; set +o history +H; PS1= PS2=; printf 'up\\n' >&{events}\n"


class BashKernel(PipedKernel):
    """One shell. It reads commands from a pipe and tells each one's status through another."""

    def __init__(self, process: program.Program, requests: program.Requests, events: int) -> None:
        super().__init__(process, requests)
        self._events = events
        self._count = 0

    async def begin(self) -> None:
        """Wait until it is ready; what it said of having no terminal is dropped."""
        await self._requests.send(_BEGIN.format(events=self._events).encode())
        await self._process.event()
        await self._process.drain()

    async def _converse(self, request: Request, emit: Emit) -> None:
        self._count += 1
        await emit(messages.started(self._count))
        await self._requests.send(script(request, self._events).encode())
        status = int(await self._process.event())
        await self._process.drain()
        if status != 0:
            await emit(messages.error("CommandFailed", f"exit status {status}"))


def script(request: Request, events: int) -> str:
    """What the shell is told to run one request. An interrupt ends a line, not those after it."""
    before = [f"export {name}={shlex.quote(value)}" for name, value in request.lasting.items()]
    after = []
    for name, value in request.env.items():
        kept, known = f"__sandgate_kept_{name}", f"__sandgate_known_{name}"
        before.append(f"{kept}=${{{name}-}} {known}=${{{name}+x}}")
        before.append(f"export {name}={shlex.quote(value)}")
        after.append(f'if [ -n "${known}" ]; then {name}=${kept}; else unset {name}; fi')
        after.append(f"unset {kept} {known}")
    lines = [
        *before,
        # No closing of a quote or bracket in the code can get out of this.
        f"eval {shlex.quote(request.code)} </dev/null {events}>&-",
        "__sandgate_status=$?",
        *after,
        f"builtin printf '%s\\n' \"$__sandgate_status\" >&{events}",
    ]
    return "\n".join(lines) + "\n"


async def start(cwd: str, env: Mapping[str, str]) -> BashKernel:
    """A kernel. Raises KernelStartError."""
    requests = program.Requests()
    numbers = []

    def argv(events: int) -> list[str]:
        numbers.append(events)
        return ["bash", "--noprofile", "--norc", "--noediting", "-i"]

    try:
        process = await program.start(argv, cwd, env, stdin=requests.theirs)
    except BaseException:
        requests.close()
        raise
    finally:
        requests.passed()
    kernel = BashKernel(process, requests, numbers[0])
    await kernel.begin()
    return kernel
