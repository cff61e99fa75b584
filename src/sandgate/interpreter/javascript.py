"""JavaScript and TypeScript: a Node.js process that runs the driver beside this file."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from importlib import resources

from sandgate.interpreter import program
from sandgate.interpreter.kernel import Emit, KernelDiedError, Request, how_it_ended

_SOURCE = resources.files("sandgate.interpreter").joinpath("driver.js").read_bytes()


class NodeKernel:
    """One process of Node.js."""

    def __init__(
        self, process: program.Program, requests: program.Requests, *, typescript: bool
    ) -> None:
        self._process = process
        self._requests = requests
        self._typescript = typescript
        self._closed = False

    @property
    def alive(self) -> bool:
        """See Kernel."""
        return not self._process.ended.done()

    async def execute(self, request: Request, emit: Emit) -> None:
        """See Kernel."""
        message = {
            "code": request.code,
            "env": dict(request.env),
            "lasting": dict(request.lasting),
            "typescript": self._typescript,
        }
        self._process.emit = emit
        try:
            await self._requests.send(json.dumps(message).encode() + b"\n")
            while (event := json.loads(await self._process.event())) != {"type": "done"}:
                await emit(event)
            await self._process.drain()
        except BrokenPipeError:
            raise KernelDiedError(how_it_ended(await self._process.ended)) from None
        finally:
            self._process.emit = None

    def interrupt(self) -> None:
        """See Kernel."""
        self._process.signal(signal.SIGINT)

    async def kill(self) -> None:
        """See Kernel."""
        if not self._closed:
            self._closed = True
            await self._process.kill()
            self._requests.close()


async def start(cwd: str, env: Mapping[str, str], *, typescript: bool) -> NodeKernel:
    """A kernel. Raises KernelStartError."""
    requests = program.Requests()
    driver = os.memfd_create("driver", 0)
    try:
        os.write(driver, _SOURCE)

        def argv(events: int) -> list[str]:
            boot = (
                "require('node:vm').runInThisContext("
                f"require('node:fs').readFileSync('/proc/self/fd/{driver}', 'utf8'), "
                f"{{filename: 'sandgate:driver'}})(require, {requests.theirs}, {events})"
            )
            return ["node", "--expose-internals", "--no-warnings", "--eval", boot]

        process = await program.start(argv, cwd, env, descriptors=[driver, requests.theirs])
    except BaseException:
        requests.close()
        raise
    finally:
        os.close(driver)
        requests.passed()
    return NodeKernel(process, requests, typescript=typescript)
