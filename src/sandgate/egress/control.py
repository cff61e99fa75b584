"""How the control process tells the gateway about sandboxes: JSON lines on a Unix socket.

A request is ``{"id": n, "op": ...}`` and is answered with ``{"id": n, "ok": true}`` once it is in
force, or with ``{"id": n, "ok": false, "error": why}``. The operations are ``ping``, ``set``
(`sandbox_id`, `address`, `policy`), ``remove`` (`address`) and ``retain`` (`addresses`: all others
are removed). The gateway also takes ``explain`` (`policy`, `target`), and answers with `result`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Protocol

from sandgate.egress.privileges import Identity
from sandgate.egress.table import SandboxEntry
from sandgate.policy import MAX_ENTRIES, EgressPolicy, normalise_pattern
from sandgate.unix_sockets import bind

MAX_LINE = 16 * 1024 * 1024
"""Longest request in bytes: a policy with every list full fits."""

_SANDBOX_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BACKLOG = 16
_POLICY_KEYS = ("allow", "deny", "names", "dns", "mode")
_LISTS = ("allow", "deny", "names", "dns")

_logger = logging.getLogger(__name__)


class RequestError(ValueError):
    """A request that is not understood. The message names the field, the value and the remedy."""


class Table(Protocol):
    """What is told of sandboxes."""

    def set(self, entry: SandboxEntry) -> None:
        """Add a sandbox or change its policy."""

    def remove(self, address: IPv4Address) -> None:
        """Forget a sandbox."""

    def retain(self, addresses: Iterable[IPv4Address]) -> None:
        """Forget every sandbox whose address is not among `addresses`."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be explained."""

    id: int
    policy: EgressPolicy
    target: str


class Explains(Protocol):
    """Says what would become of a connection."""

    async def explain(self, policy: EgressPolicy, text: str) -> dict[str, Any]:
        """Raises ValueError with what is wrong with `text`."""


class ControlServer:
    """Serves the control socket. Only processes of `uids` are heard."""

    def __init__(
        self,
        table: Table,
        sandboxes: IPv4Network,
        uids: Collection[int],
        explainer: Explains | None = None,
    ) -> None:
        self._table = table
        self._explainer = explainer
        self._sandboxes = sandboxes
        self._uids = frozenset(uids)
        self._operations: dict[str, Callable[[dict[str, Any]], None]] = {
            "ping": self._ping,
            "set": self._set,
            "remove": self._remove,
            "retain": self._retain,
        }

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Start serving."""
        return await asyncio.start_unix_server(self.connection, sock=listener, limit=MAX_LINE)

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until it ends."""
        try:
            uid = _peer_uid(writer)
            if uid not in self._uids:
                _logger.warning("control connection of uid %d refused", uid)
                return
            while line := await reader.readline():
                reply = self.handle(line)
                if isinstance(reply, Question):
                    reply = await self._explain(reply)
                writer.write(json.dumps(reply).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:  # ValueError: a line longer than the limit
            _logger.warning("control connection ended: %s", error)
        finally:
            writer.close()

    async def _explain(self, question: Question) -> dict[str, object]:
        assert self._explainer is not None
        try:
            result = await self._explainer.explain(question.policy, question.target)
        except ValueError as error:
            return {"id": question.id, "ok": False, "error": str(error)}
        return {"id": question.id, "ok": True, "result": result}

    def handle(self, line: bytes) -> dict[str, object] | Question:
        """Carry out one request and say how it went; or what it is that is to be explained."""
        id_: object = None
        try:
            try:
                request = json.loads(line)
            except ValueError as error:
                raise RequestError(f"not JSON: {error}") from None
            if not isinstance(request, dict):
                raise RequestError("a request is a JSON object")
            id_ = request.pop("id", None)
            if type(id_) is not int:
                raise RequestError(f"id: {id_!r} is no integer")
            name = str(request.pop("op", None))
            if name == "explain" and self._explainer is not None:
                _expect_keys(request, ("policy", "target"))
                target, policy = str(request["target"]), parse_wire_policy(request["policy"])
                return Question(id_, policy, target)
            operation = self._operations.get(name)
            if operation is None:
                raise RequestError(f"op: expected one of {', '.join(self._operations)}")
            operation(request)
        except RequestError as error:
            _logger.warning("control request refused: %s", error)
            return {"id": id_, "ok": False, "error": str(error)}
        return {"id": id_, "ok": True}

    def _ping(self, request: dict[str, Any]) -> None:
        _expect_keys(request, ())

    def _set(self, request: dict[str, Any]) -> None:
        _expect_keys(request, ("sandbox_id", "address", "policy"))
        sandbox_id = request["sandbox_id"]
        if not isinstance(sandbox_id, str) or not _SANDBOX_ID.fullmatch(sandbox_id):
            raise RequestError(f"sandbox_id: {sandbox_id!r} is no sandbox id")
        address = self._address(request["address"], "address")
        self._table.set(SandboxEntry(sandbox_id, address, parse_wire_policy(request["policy"])))

    def _remove(self, request: dict[str, Any]) -> None:
        _expect_keys(request, ("address",))
        self._table.remove(self._address(request["address"], "address"))

    def _retain(self, request: dict[str, Any]) -> None:
        _expect_keys(request, ("addresses",))
        addresses = request["addresses"]
        if not isinstance(addresses, list):
            raise RequestError(f"addresses: {addresses!r} is no list")
        self._table.retain([self._address(entry, "addresses") for entry in addresses])

    def _address(self, value: object, field: str) -> IPv4Address:
        try:
            if not isinstance(value, str):
                raise ValueError
            address = IPv4Address(value)
        except ValueError:
            raise RequestError(f"{field}: {value!r} is no IPv4 address") from None
        if address not in self._sandboxes:
            raise RequestError(f"{field}: {value} is outside of the range {self._sandboxes}")
        return address


def parse_wire_policy(data: object) -> EgressPolicy:
    """A policy as :meth:`EgressPolicy.to_json` wrote it. Raises :class:`RequestError`."""
    if not isinstance(data, dict):
        raise RequestError(f"policy: {data!r} is no object")
    _expect_keys(data, _POLICY_KEYS, "policy.")
    for key in _LISTS:
        entries = data[key]
        if key == "dns" and entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise RequestError(f"policy.{key}: expected a list of strings")
        if len(entries) > MAX_ENTRIES:
            raise RequestError(f"policy.{key}: more than {MAX_ENTRIES} entries")
    try:
        for name in data["names"]:
            if normalise_pattern(name, "names") != name:
                raise RequestError(f"policy.names: {name!r} is not normalised")
        return EgressPolicy.from_json(data)
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError(f"policy: {error}") from None


def listen(path: Path, peer: Identity) -> socket.socket:
    """A socket at `path` to which `peer` and root alone may connect. As root; raises OSError."""
    listener = bind(path, socket.SOCK_STREAM, (peer.uid, peer.gid), 0o600)
    listener.listen(_BACKLOG)
    return listener


def _expect_keys(data: dict[str, Any], keys: Collection[str], prefix: str = "") -> None:
    if set(data) != set(keys):
        wrong = ", ".join(prefix + key for key in sorted(set(data) ^ set(keys)))
        raise RequestError(f"missing or unknown: {wrong}")


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    sock = writer.get_extra_info("socket")
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iii", credentials)[1])
