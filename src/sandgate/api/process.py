"""The control process: what it is told, what it becomes, and how it serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from pydantic import BaseModel, ConfigDict, Field
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandgate import unix_sockets
from sandgate.accounts.keyring import KeyRing
from sandgate.api.app import Api
from sandgate.api.dependencies import Services
from sandgate.api.errors import error_response
from sandgate.api.repetitions import Repetitions
from sandgate.api.responses import Identity
from sandgate.egress.client import EgressClient
from sandgate.egress.privileges import Identity as Account
from sandgate.egress.table import SandboxEntry
from sandgate.ingress.client import IngressClient
from sandgate.node.catalogue import TemplateCatalogue
from sandgate.node.decisions import DecisionHub
from sandgate.node.doorbell import serve_doorbell
from sandgate.node.gauges import MachineGauge
from sandgate.node.node import Node
from sandgate.node.parts import Parts
from sandgate.recorder.client import Witnessed
from sandgate.runtime.client import LauncherClient, LauncherError
from sandgate.settings import Settings
from sandgate.store import Store
from sandgate.store.decisions import DecisionStore

STOP_SECONDS = 2
"""Time for open requests to end once the process is asked to."""
_BACKLOG = 1024
_SOCKET_MODE = 0o660

_log = logging.getLogger(__name__)


class ControlConfig(BaseModel):
    """What the supervisor writes on standard input, as one JSON object."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: Settings
    public_domain: str
    """Domain of API and sandbox URLs, with `:port` unless it is 443."""
    api_key_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    """:func:`sandgate.accounts.hash_key` of the operator's key. The key itself stays outside."""
    proxy_user: str
    """Whom HAProxy runs as; each may connect to what is made for it, and nothing else."""
    egress_user: str
    recorder_user: str


def prepare_store_dir(data_dir: Path, account: Account) -> Path:
    """Make the directory that the database lives in (0700, the account's). As root."""
    directory = data_dir / "store"
    directory.mkdir(mode=0o700, exist_ok=True)
    if not stat.S_ISDIR(directory.lstat().st_mode):
        raise NotADirectoryError(f"{directory} must be a directory; move it away")
    os.chown(directory, account.uid, account.gid, follow_symlinks=False)
    directory.chmod(0o700)
    return directory


def raise_file_limit() -> None:
    """Allow as many open files as we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def listen(path: Path, owner: tuple[int, int]) -> socket.socket:
    """Listen on a unix socket, instead of whoever did before. See :func:`bind`."""
    listener = bind(path, socket.SOCK_STREAM, owner)
    listener.listen(_BACKLOG)
    return listener


@dataclass(frozen=True, slots=True)
class Sockets:
    """What the control process is reached by, made before root is given up."""

    api: socket.socket
    wake: socket.socket
    decisions: socket.socket


def open_sockets(config: ControlConfig, account: Account) -> Sockets:
    """Open them for those who are to connect. As root; raises OSError or ValueError."""
    run_dir = config.settings.run_dir
    proxy, egress = Account.of(config.proxy_user), Account.of(config.egress_user)
    # By the group, an HAProxy of an earlier version, which ran as this user, serves to its end.
    from_proxy = (proxy.uid, account.gid)
    from_gates = (egress.uid, Account.of(config.recorder_user).gid)
    return Sockets(
        api=listen(run_dir / "control.sock", from_proxy),
        wake=listen(run_dir / "wake.sock", from_proxy),
        decisions=bind(run_dir / "decisions.sock", socket.SOCK_DGRAM, from_gates),
    )


def bind(path: Path, kind: socket.SocketKind, owner: tuple[int, int]) -> socket.socket:
    """A unix socket at `path`, instead of the one that was there before.

    A user and a group, `owner`, may connect to it.
    """
    return unix_sockets.bind(path, kind, owner, _SOCKET_MODE)


class Protocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 that answers what it cannot parse in the shape of all errors."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close."""
        # What is wrong with the request is not known here; HAProxy found nothing.
        body = bytes(error_response(400, "the request is not valid HTTP").body)
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"cache-control: no-store\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn that ends by returning, where the original would die of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop serving on SIGTERM and SIGINT."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)


def load_server(app: Api) -> Server:
    """A server for `app`, with all that it will import."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    config.load()
    return Server(config)


class Control:
    """The node of this process and the API in front of it. Made on the event loop."""

    def __init__(
        self,
        config: ControlConfig,
        templates: TemplateCatalogue,
        store: Store,
        decisions: DecisionStore,
        told: socket.socket,
        app: Api,
    ) -> None:
        """`told`: where the other processes tell of decisions; closed with the hub.

        `app` answers for this node from now on.
        """
        settings = config.settings
        run_dir = settings.run_dir
        # The clients report to the node, which is made of the clients: hence the late binding.
        self.node: Node

        async def on_exit(sandbox_id: str) -> None:
            await self.node.on_exit(sandbox_id)

        async def on_launcher() -> None:
            await self.node.on_launcher_connect()

        async def entries() -> list[SandboxEntry]:
            return await self.node.entries()

        launcher = LauncherClient(run_dir / "launcher.sock", on_exit, on_launcher)

        async def untold() -> dict[str, int] | None:
            try:
                return await launcher.untold()
            except LauncherError:
                return None

        self.decisions = DecisionHub(told, decisions, lambda name: self.node.owner_of(name), untold)
        parts = Parts(
            settings=settings,
            store=store,
            templates=templates,
            launcher=launcher,
            egress=Witnessed(
                EgressClient(run_dir / "egress.sock", entries),
                EgressClient(run_dir / "recorder.sock", entries),
            ),
            ingress=IngressClient(run_dir / "haproxy.sock", lambda: self.node.routes()),
            gauge=MachineGauge(settings.data_dir),
        )
        self.node = Node(parts)
        app.answer_for(
            Services(
                self.node,
                self.decisions,
                Repetitions(store),
                Identity(client_id=settings.node_id, domain=config.public_domain),
                settings.default_timeout,
            ),
            KeyRing(config.api_key_hash, settings.key_file),
        )


async def serve(
    server: uvicorn.Server, control: Control, listener: socket.socket, doorbell: socket.socket
) -> None:
    """Serve until SIGTERM. Raises what kept the node from starting."""
    node, decisions = control.node, control.decisions
    decisions.start()
    try:
        async with _starting(node, server) as start:
            bell = await serve_doorbell(doorbell, node.wake)
            try:
                await server.serve([listener])
            finally:
                bell.close()
    finally:
        await decisions.close()
    if start.done() and not start.cancelled() and (error := start.exception()) is not None:
        raise error


@contextlib.asynccontextmanager
async def _starting(node: Node, server: uvicorn.Server) -> AsyncIterator[asyncio.Task[None]]:
    """Start the node while requests are already answered (503 until it has started)."""

    def failed(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            server.should_exit = True

    start = asyncio.create_task(node.start())
    start.add_done_callback(failed)
    try:
        yield start
    finally:
        start.cancel()
        await asyncio.wait({start})
        await node.close()
