"""The assembler's end of the mould."""

from __future__ import annotations

import json
import os
import socket
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandgate.runtime.children import Child
from sandgate.runtime.orders import MAX_MESSAGE, Order

_MODULE = "sandgate.runtime.mould"


def start_mould() -> Child:
    """Start the process, which has much to import. Raises OSError."""
    return Child(_MODULE)


class Mould:
    """The assembler's end. The process is made again should it have died."""

    def __init__(
        self, child: Child, cgroups: Mapping[str, Any], scratch: Path, seccomp: bytes
    ) -> None:
        """:param child: from :func:`start_mould`."""
        told = {"cgroups": cgroups, "scratch": str(scratch), "seccomp": b64encode(seccomp).decode()}
        self._equipment = json.dumps(told).encode()
        self._child = child
        child.channel.send(self._equipment)

    def cast(self, order: Order) -> tuple[int, int]:
        """Fork a cell; its pid and pidfd. Raises OSError."""
        try:
            return self._cast(order)
        except ConnectionError:
            self._child.end()
            self._child = start_mould()
            self._child.channel.send(self._equipment)
            return self._cast(order)

    def close(self) -> None:
        """End the process. The cells live on."""
        self._child.end()

    def _cast(self, order: Order) -> tuple[int, int]:
        order.send(self._child.channel)
        answer, received, _, _ = socket.recv_fds(self._child.channel, MAX_MESSAGE, 1)
        if not answer:
            raise ConnectionResetError("the process that cells are forked from has died")
        found = json.loads(answer)
        if not received:
            raise OSError(found["errno"], f"no cell could be forked: {os.strerror(found['errno'])}")
        return found["pid"], received[0]
