"""Web applications in a sandbox, and browsers that find them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from ingress.harness import Gate


@contextlib.asynccontextmanager
async def application(gate: Gate, app: web.Application) -> AsyncIterator[int]:
    """An aiohttp application in sandbox 1."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, str(gate.sandbox(1)), 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class _ToGate(aiohttp.abc.AbstractResolver):
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        return [
            aiohttp.abc.ResolveResult(
                hostname=host, host=str(self._gate.address), port=port,
                family=socket.AF_INET, proto=0, flags=0,
            )
        ]  # fmt: skip

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def browser(gate: Gate) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(resolver=_ToGate(gate), ssl=gate.tls())
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session
