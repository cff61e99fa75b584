"""JavaScript and TypeScript: a Node.js process that runs the driver beside this file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources

from sandgate.interpreter import program
from sandgate.interpreter.kernel import Emit, Request
from sandgate.interpreter.piped import PipedKernel

_SOURCE = resources.files("sandgate.interpreter").joinpath("driver.js").read_bytes()


class NodeKernel(PipedKernel):
    """One process of Node.js."""

    def __init__(
        self, process: program.Program, requests: program.Requests, *, typescript: bool
    ) -> None:
        super().__init__(process, requests)
        self._typescript = typescript

    async def _converse(self, request: Request, emit: Emit) -> None:
        message = {
            "code": request.code,
            "env": dict(request.env),
            "lasting": dict(request.lasting),
            "typescript": self._typescript,
        }
        await self._requests.send(json.dumps(message).encode() + b"\n")
        while (event := json.loads(await self._process.event())) != {"type": "done"}:
            await emit(event)
        await self._process.drain()


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
