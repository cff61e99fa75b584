"""Speaks the launcher's protocol on its socket, and starts nothing. Runs in a thread."""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import threading
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from sandgate.runtime.protocol import MAX_MESSAGE, Launched, read_attachment


class LauncherDouble:
    """Outlives the control process, as the launcher does."""

    def __init__(self, path: Path) -> None:
        self.sandboxes: dict[str, Launched] = {}
        self.policies: dict[str, dict[str, Any]] = {}
        self.configs: dict[str, dict[str, Any]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        path.chmod(0o666)
        self._listener.listen()
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> LauncherDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def report_exit(self, sandbox_id: str) -> None:
        """The sandbox's first process died."""
        del self.sandboxes[sandbox_id]
        assert self._connection is not None
        self._connection.send(json.dumps({"event": "exit", "sandbox_id": sandbox_id}).encode())

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._connection, _ = self._listener.accept()
                with self._connection:
                    while self._answer(self._connection):
                        pass

    def _answer(self, connection: socket.socket) -> bool:
        space = socket.CMSG_SPACE(2 * array.array("i").itemsize)
        data, ancillary, _, _ = connection.recvmsg(MAX_MESSAGE, space)
        if not data:
            return False
        attached = array.array("i")
        for _, _, part in ancillary:
            attached.frombytes(part)
        attachments = [read_attachment(number) for number in attached]
        for number in attached:
            os.close(number)
        request = json.loads(data)
        result = self._carry_out(request, attachments)
        connection.send(json.dumps({"id": request["id"], "result": result}).encode())
        return True

    def _carry_out(self, request: dict[str, Any], attachments: list[dict[str, Any]]) -> Any:
        if request["op"] == "running":
            return {"sandboxes": [item.to_json() for item in self.sandboxes.values()]}
        if request["op"] == "create":
            spec, config = attachments
            slot = len(self.configs)
            address = IPv4Address("198.18.0.16") + slot
            launched = Launched(spec["sandbox_id"], slot, address, 4000 + slot)
            self.sandboxes[launched.sandbox_id] = launched
            self.policies[launched.sandbox_id] = spec["policy"]
            self.configs[launched.sandbox_id] = config
            return launched.to_json()
        if request["op"] == "set_policy":
            (self.policies[request["sandbox_id"]],) = attachments
        elif request["op"] == "usage":
            names = self.sandboxes.keys() & set(request["sandbox_ids"])
            return {"sandboxes": {name: [0, 1 << 20, 0, 1 << 20, 1 << 30] for name in names}}
        elif request["op"] == "images":
            return {"kept": [], "snapshots": []}
        elif request["op"] == "kill":
            self.sandboxes.pop(request["sandbox_id"], None)
        return None
