"""Asks the API of the node on this machine."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import click

from sandgate.cli.options import NotRunning
from sandgate.settings import Settings
from sandgate.supervisor.layout import Layout
from sandgate.supervisor.probes import connect_tls
from sandgate.supervisor.record import NodeRecord, running_node
from sandgate.supervisor.status import network_of

KEY_VARIABLE = "E2B_API_KEY"
"""Whose sandboxes are meant; the operator's if it is not set."""
_SECONDS = 60.0
"""Longest silence of the API; a live stream says something every 15 seconds."""
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True, slots=True)
class Api:
    """A node's API, and the key to it."""

    record: NodeRecord
    key: str

    def get(self, path: str, **query: str) -> Any:
        """The answer to a GET. Raises click.ClickException."""
        return self.page(path, **query)[0]

    def page(self, path: str, **query: str) -> tuple[Any, str | None]:
        """The same, with the token of the page that follows. Raises click.ClickException."""
        with self._request("GET", path, query) as response:
            return json.loads(response.read()), response.getheader("X-Next-Token")

    def patch(self, path: str, body: object) -> None:
        """Make a PATCH. Raises click.ClickException."""
        with self._request("PATCH", path, {}, json.dumps(body).encode()) as response:
            response.read()

    def events(self, path: str) -> Iterator[tuple[str, Any]]:
        """Server-sent events, as kind and data. Raises click.ClickException."""
        with self._request("GET", path, {"follow": "true"}) as response:
            kind = ""
            while line := response.readline(_LONGEST_LINE):
                word, _, value = line.decode().rstrip("\n").partition(": ")
                if word == "event":
                    kind = value
                elif word == "data":
                    yield kind, json.loads(value)

    @contextmanager
    def _request(
        self, method: str, path: str, query: dict[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        record = self.record
        host = f"api.{record.host}"
        headers = {"X-API-KEY": self.key, "Content-Type": "application/json"}
        target = f"{path}?{urlencode(query)}" if query else path
        with closing(http.client.HTTPConnection(host, record.https_port)) as connection:
            connection.sock = connect_tls(
                str(record.listen), record.https_port, host, record.trusted
            )
            connection.sock.settimeout(_SECONDS)
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            if response.status >= 300:
                raise click.ClickException(_message(response))
            yield response


@contextmanager
def local_api(settings: Settings) -> Iterator[Api]:
    """The API of the node that `settings` stand for; meanwhile this thread is in its network.

    Raises :class:`NotRunning`, OSError.
    """
    layout = Layout.of(settings)
    supervisor, record = running_node(layout)
    if supervisor is None or record is None:
        raise NotRunning(f"no node runs in {settings.data_dir}; start it with `sandgate up` first")
    with network_of(supervisor):
        yield Api(record, os.environ.get(KEY_VARIABLE) or layout.read_api_key())


def sandbox_path(sandbox_id: str, rest: str) -> str:
    """The path of something of a sandbox."""
    return f"/sandboxes/{quote(sandbox_id, safe='')}/{rest}"


def _message(response: http.client.HTTPResponse) -> str:
    try:
        return str(json.loads(response.read())["message"])
    except (ValueError, KeyError, TypeError):
        return f"the API answered {response.status}"
