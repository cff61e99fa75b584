"""What the launcher and the assembler say to each other."""

from __future__ import annotations

import json
import socket
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from sandgate.network import LinkConfig
from sandgate.runtime.cgroups import Limits
from sandgate.runtime.orders import MAX_DESCRIPTORS, MAX_MESSAGE


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node's cells are made: what the assembler is told first."""

    data_dir: Path
    scratch: Path
    """Made by :func:`sandgate.runtime.rootfs.prepare_scratch`."""
    id_base: int
    cgroups: Mapping[str, Any]
    """Made by :meth:`sandgate.runtime.cgroups.Cgroups.to_json`."""
    links: LinkConfig
    seccomp: bytes
    ahead: int
    """For so many slots more than are in use, what can be is made ahead."""

    def encode(self) -> bytes:
        """As a message."""
        fields = {**asdict(self), "seccomp": b64encode(self.seccomp).decode()}
        return json.dumps(fields, default=str).encode()

    @classmethod
    def decode(cls, message: bytes) -> Site:
        """The inverse of :meth:`encode`."""
        fields = json.loads(message)
        links = fields["links"]
        links["sandboxes"] = IPv4Network(links["sandboxes"])
        return cls(
            Path(fields["data_dir"]),
            Path(fields["scratch"]),
            fields["id_base"],
            fields["cgroups"],
            LinkConfig(**links),
            b64decode(fields["seccomp"]),
            fields["ahead"],
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A cell that the assembler is to make."""

    slot: int
    layers: tuple[Path, ...]
    """Topmost first."""
    disk_mb: int
    image: Path | None
    """What its disk is; None: an empty one."""
    limits: Limits
    """Of its control group."""
    interpreter: bool
    """Whether it is to have a door for one."""

    def encode(self) -> bytes:
        """As a message."""
        # Not by asdict, which would copy every path bit by bit.
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({**fields, "limits": asdict(self.limits)}, default=str).encode()

    @classmethod
    def decode(cls, message: bytes) -> Job:
        """The inverse of :meth:`encode`."""
        fields = json.loads(message)
        fields["layers"] = tuple(map(Path, fields["layers"]))
        fields["image"] = fields["image"] and Path(fields["image"])
        fields["limits"] = Limits(**fields["limits"])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class Made:
    """What became of a job. The descriptors are the receiver's to close."""

    slot: int
    pid: int
    """0: there is no cell, and nothing is left of it."""
    errno: int
    """Why there is none."""
    reason: str
    descriptors: tuple[int, ...]
    """The pidfd, the channel to the cell, its disk's root directory; or none."""

    def send(self, channel: socket.socket) -> None:
        """Raises OSError."""
        fields = {
            "slot": self.slot,
            "pid": self.pid,
            "errno": self.errno,
            "reason": self.reason,
        }
        socket.send_fds(channel, [json.dumps(fields).encode()], list(self.descriptors))

    @classmethod
    def receive(cls, channel: socket.socket) -> Made | None:
        """None: the sender is gone."""
        try:
            message, descriptors, _, _ = socket.recv_fds(channel, MAX_MESSAGE, MAX_DESCRIPTORS)
        except ConnectionError:
            return None
        if not message:
            return None
        return cls(**json.loads(message), descriptors=tuple(descriptors))
