"""The API over a node whose other processes are fakes: called in this process, and over TCP."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from node.fakes import World, make_world, running_world
from sandgate.accounts import hash_key
from sandgate.accounts.keyring import KeyRing
from sandgate.api.app import Api, create_app
from sandgate.api.dependencies import Services
from sandgate.api.process import bind, load_server
from sandgate.api.repetitions import Repetitions
from sandgate.api.responses import Identity
from sandgate.node.decisions import DecisionHub
from sandgate.store.decisions import DecisionStore

KEY = "e2b_" + "0123456789" * 4
DOMAIN = "sandgate.localhost:8443"


def make_hub(directory: Path, world: World) -> DecisionHub:
    """A decision log that listens, once it is started, and keeps what it hears."""
    told = bind(directory / "decisions.sock", socket.SOCK_DGRAM, (os.getuid(), os.getgid()))
    return DecisionHub(
        told, DecisionStore(directory / "decisions.db"), lambda name: world.node.owner_of(name)
    )


def make_services(world: World, hub: DecisionHub) -> Services:
    """What the API needs of the world."""
    identity = Identity(client_id=world.settings.node_id, domain=DOMAIN)
    repetitions = Repetitions(world.store)
    return Services(world.node, hub, repetitions, identity, world.settings.default_timeout)


def make_app(world: World, hub: DecisionHub) -> Api:
    """The API in front of the world's node."""
    app = create_app()
    app.answer_for(make_services(world, hub), KeyRing(hash_key(KEY)))
    return app


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A started node."""
    async with running_world(tmp_path) as made:
        yield made


@pytest.fixture
async def hub(tmp_path: Path, world: World) -> AsyncIterator[DecisionHub]:
    """The decision log behind the API."""
    made = make_hub(tmp_path, world)
    made.start()
    yield made
    await made.close()


@pytest.fixture(scope="session")
def shared_app() -> list[Api]:
    """The app that tests share one after the other, since its first request takes long."""
    return []


@pytest.fixture
async def api(
    world: World, hub: DecisionHub, shared_app: list[Api]
) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the right key."""
    if not shared_app:
        shared_app.append(make_app(world, hub))
    (app,) = shared_app
    app.state.services = make_services(world, hub)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="https://api.test", headers={"X-API-KEY": KEY}
    ) as client:
        yield client


class Served:
    """The API on a loopback port, in a thread with an event loop of its own."""

    def __init__(self, data_dir: Path) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.world: World
        self.hub: DecisionHub
        self.loop: asyncio.AbstractEventLoop
        self._data_dir = data_dir
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Served:
        self._thread.start()
        assert self._up.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self._stop)
        self._thread.join(10)
        self.listener.close()

    def _stop(self) -> None:
        self._server.should_exit = True

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.world = make_world(self._data_dir, max_sandboxes=5, max_timeout=3600)
        await self.world.node.start()
        # Not `serve`: signals belong to the main thread.
        self.hub = make_hub(self._data_dir, self.world)
        self.hub.start()
        self._server = load_server(make_app(self.world, self.hub))
        self._up.set()
        await self._server._serve([self.listener])
        await self.hub.close()
        await self.world.node.close()
        self.world.store.close()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Where the SDKs of this process talk to."""
    with Served(tmp_path) as made:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("E2B_API_URL", made.url)
        monkeypatch.setenv("E2B_API_KEY", KEY)
        monkeypatch.delenv("E2B_DEBUG", raising=False)
        yield made
