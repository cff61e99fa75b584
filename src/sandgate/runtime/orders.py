"""What the assembler says to the mould."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass

from sandgate.runtime.rootfs import RootFs

MAX_MESSAGE = 65536
MAX_DESCRIPTORS = 32


@dataclass(frozen=True, slots=True)
class Order:
    """What the mould makes a cell from. The descriptors stay the sender's."""

    group: str
    """Name of its control group."""
    channel: int
    """The cell's end."""
    network: int
    users: int
    root: RootFs
    interpreter: bool

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All of them."""
        return (self.channel, self.network, self.users, self.root.disk, *self.root.layers)

    def send(self, channel: socket.socket) -> None:
        """Raises OSError."""
        fields = {
            "group": self.group,
            "id_base": self.root.id_base,
            "shared_mb": self.root.shared_mb,
            "interpreter": self.interpreter,
        }
        socket.send_fds(channel, [json.dumps(fields).encode()], list(self.descriptors))

    @classmethod
    def receive(cls, channel: socket.socket) -> Order | None:
        """None: the sender is gone. The descriptors are the receiver's to close."""
        message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_DESCRIPTORS)
        if not message:
            return None
        fields = json.loads(message)
        cell, network, users, disk, *layers = descriptors
        root = RootFs(tuple(layers), disk, fields["id_base"], fields["shared_mb"])
        return cls(fields["group"], cell, network, users, root, fields["interpreter"])

    def close(self) -> None:
        """Close the descriptors."""
        for fd in self.descriptors:
            os.close(fd)
