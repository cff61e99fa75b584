"""The control process's end of the recorder's control socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

from sandgate.egress.client import EgressClient, EgressRefused, EgressUnavailable
from sandgate.egress.table import SandboxEntry
from sandgate.policy import EgressPolicy

_logger = logging.getLogger(__name__)


class Witnessed:
    """The egress gateway's client, with the recorder told of all that the gateway is told.

    The gateway enforces, the recorder only explains: whatever is wrong with it is logged, and
    nothing waits for it, which makes way for all others. When it is back it is told everything.
    """

    def __init__(self, gateway: EgressClient, recorder: EgressClient) -> None:
        """`recorder` speaks the gateway's protocol."""
        self._gateway = gateway
        self._recorder = recorder
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Is the gateway there, and told everything?"""
        return self._gateway.connected

    async def start(self) -> None:
        """Connect. Raises :class:`EgressUnavailable` if the gateway does not answer."""
        self._recorder.begin()
        await self._gateway.start()

    async def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or change its policy. In force when this returns.

        Raises :class:`EgressUnavailable` or :class:`EgressRefused`.
        """
        self._tell(self._recorder.set(entry))
        await self._gateway.set(entry)

    async def remove(self, address: IPv4Address) -> None:
        """Forget a sandbox and reset its connections. Raises as :meth:`set` does."""
        self._tell(self._recorder.remove(address))
        await self._gateway.remove(address)

    async def explain(self, policy: EgressPolicy, target: str) -> dict[str, Any]:
        """As :meth:`EgressClient.explain`."""
        return await self._gateway.explain(policy, target)

    async def close(self) -> None:
        """Disconnect."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(self._gateway.close(), self._recorder.close())

    def _tell(self, work: Awaitable[None]) -> None:
        async def quietly() -> None:
            with suppress(EgressUnavailable):  # it will be told everything
                try:
                    await work
                except EgressRefused as error:
                    _logger.error("the recorder: %s", error)

        task = asyncio.get_running_loop().create_task(quietly())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
