"""A real HAProxy on loopback addresses of this test process, and servers that play sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import httpx

from sandgate.ingress.certificates import Certificates, ensure_certificates
from sandgate.ingress.client import IngressClient
from sandgate.ingress.config import IngressConfig, command, maxconn_for, write_files
from sandgate.ingress.routes import Route

DOMAIN = "sandgate.localhost"
TOKEN = "0123456789abcdef0123456789abcdef"
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101 Firefox/140.0"

_PLAIN_NAME = re.compile(rf"(?=.{{1,63}}\.)[a-z0-9]+(-[a-z0-9]+)*\.{re.escape(DOMAIN)}")

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Gate:
    """One HAProxy. Addresses are 127.a.b.*, with a and b from the process id."""

    def __init__(self, directory: Path, *, inside: bool = True, maxconn: int | None = None) -> None:
        pid = os.getpid()
        self._prefix = f"127.{pid // 250 % 200 + 10}.{pid % 250}"
        self.address = IPv4Address(f"{self._prefix}.1")
        self.inside = IPv4Address(f"{self._prefix}.2")
        self.directory = directory
        self.port = _free_port(self.address, self.inside)
        self.certificates: Certificates = ensure_certificates(
            directory / "tls", DOMAIN, [self.address, self.inside]
        )
        if maxconn is None:
            maxconn = maxconn_for(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        self.config = IngressConfig(
            directory=directory / "ingress",
            domain=DOMAIN,
            listen=self.address,
            https_port=self.port,
            certificate=self.certificates.chain,
            control_socket=directory / "control.sock",
            admin_socket=directory / "haproxy.sock",
            ingress_address=self.inside if inside else None,
            maxconn=maxconn,
        )
        self.log = directory / "haproxy.log"
        self._process: subprocess.Popen[bytes] | None = None

    def sandbox(self, number: int) -> IPv4Address:
        """Address of the sandbox with this number, from 1."""
        return IPv4Address(f"{self._prefix}.{10 + number}")

    def configure(self, **changes: object) -> None:
        """Change fields of the configuration, for the next start."""
        self.config = replace(self.config, **changes)  # type: ignore[arg-type]  # by name

    def start(self) -> None:
        write_files(self.config)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command(self.config), stdout=log, stderr=log)
        deadline = time.monotonic() + 5
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.config.admin_socket))
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"HAProxy did not start: {self.log.read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=5)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def host(self, port: int, sandbox_id: str) -> str:
        return f"{port}-{sandbox_id}.{DOMAIN}:{self.port}"

    async def request(
        self,
        host: str,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        content: bytes | AsyncIterator[bytes] | None = None,
        http2: bool = False,
        address: IPv4Address | None = None,
    ) -> httpx.Response:
        """One request on a connection of its own; the certificate is checked against the host."""
        async with self.client(http2=http2) as client:
            return await client.request(
                method,
                f"https://{address or self.address}:{self.port}{path}",
                headers=[
                    ("Host", host),
                    *(headers.items() if isinstance(headers, Mapping) else headers),
                ],
                content=content,
                extensions={"sni_hostname": _sni(host)},
            )

    async def raw(
        self, *sent: bytes, host: str = f"api.{DOMAIN}"
    ) -> tuple[str, dict[str, str], bytes]:
        """Send these, a moment apart; status line, headers (names in lower case) and body."""
        reader, writer = await asyncio.open_connection(
            str(self.address), self.port, ssl=self.tls(), server_hostname=_sni(host)
        )
        try:
            for index, part in enumerate(sent):
                await asyncio.sleep(0.2 * (index > 0))
                writer.write(part)
            head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()
            status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            headers = {name.lower(): value for name, _, value in pairs}
            length = int(headers.get("content-length", "0"))
            return status, headers, await asyncio.wait_for(reader.readexactly(length), 5)
        finally:
            await hang_up(writer)

    def tls(self) -> ssl.SSLContext:
        """Trusts the node's authority and no other."""
        return ssl.create_default_context(cafile=str(self.certificates.ca))

    def client(self, *, http2: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(http2=http2, verify=self.tls(), timeout=20, trust_env=False)


def _sni(host: str) -> str:
    """The name a client would ask for; for hosts that are no name under the domain, the domain."""
    name = host.partition(":")[0].lower()
    return name if _PLAIN_NAME.fullmatch(name) else DOMAIN


def _free_port(*addresses: IPv4Address) -> int:
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind((str(addresses[0]), 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                for address in addresses[1:]:
                    stack.enter_context(socket.socket()).bind((str(address), port))
                return port


@contextlib.contextmanager
def running(gate: Gate) -> Iterator[Gate]:
    gate.start()
    try:
        yield gate
    finally:
        gate.stop()


@contextlib.asynccontextmanager
async def connected(gate: Gate, *routes: Route) -> AsyncIterator[IngressClient]:
    client = IngressClient(gate.config.admin_socket, lambda: routes)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


@contextlib.asynccontextmanager
async def serving(address: IPv4Address, handler: Handler, port: int = 0) -> AsyncIterator[int]:
    """A TCP server on a sandbox's address; gives its port."""

    server = await asyncio.start_server(_closing(handler), str(address), port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def serving_api(path: Path, handler: Handler) -> AsyncIterator[None]:
    """A server in the place of the API."""
    server = await asyncio.start_unix_server(_closing(handler), path)
    try:
        yield
    finally:
        server.close()
        path.unlink()


def _closing(handler: Handler) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    return handle


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close a client's connection at once, and wait until it is."""
    writer.transport.abort()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with the head of the request as it arrived."""
    head = await reader.readuntil(b"\r\n\r\n")
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%b" % (len(head), head)
    )
    await writer.drain()


def answering(response: bytes) -> Handler:
    """A server that reads the head of a request, sends these bytes and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(response)
        await writer.drain()

    return handle


def seen_headers(response: httpx.Response) -> dict[str, str]:
    """What :func:`echo` saw, names in lower case."""
    lines = response.text.split("\r\n")[1:]
    return {
        name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name
    }
