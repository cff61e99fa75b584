"""What control and launcher say to each other: small JSON messages on a SEQPACKET socket.

A request carries an id that its reply repeats. Bulky or secret parts (a specification, the
configuration of envd) travel beside the message as memory files, so that no message is too long
and the launcher passes a secret on without reading it: its memory is inherited by every sandbox.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from sandgate.policy import EgressPolicy

MAX_MESSAGE = 1 << 20
_MAX_ATTACHMENT = 16 << 20
_SANDBOX_ID = re.compile(r"[a-z0-9]{1,40}")
_TEMPLATE = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a sandbox shall be."""

    sandbox_id: str
    template: str
    cpu_count: int
    memory_mb: int
    disk_mb: int
    max_pids: int
    policy: EgressPolicy
    kept: bool = False
    """Whether it starts on the disk that is kept under its name."""

    def to_json(self) -> dict[str, Any]:
        """The form that travels."""
        return {
            "sandbox_id": self.sandbox_id,
            "kept": self.kept,
            "template": self.template,
            "cpu_count": self.cpu_count,
            "memory_mb": self.memory_mb,
            "disk_mb": self.disk_mb,
            "max_pids": self.max_pids,
            "policy": self.policy.to_json(),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SandboxSpec:
        """The inverse. The sender is less privileged than the reader: raises ValueError."""
        numbers = {}
        for name, least, most in (
            ("cpu_count", 1, 512),
            ("memory_mb", 16, 1 << 24),
            ("disk_mb", 16, 1 << 24),
            ("max_pids", 1, 1 << 22),
        ):
            value = data[name]
            if not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name}: {value!r} is not between {least} and {most}")
            numbers[name] = value
        template = data["template"]
        if not isinstance(template, str) or not _TEMPLATE.fullmatch(template):
            raise ValueError(f"template: {template!r} is not a template name")
        return cls(
            sandbox_id=checked_id(data["sandbox_id"]),
            template=template,
            policy=EgressPolicy.from_json(data["policy"]),
            kept=data["kept"] is True,
            **numbers,
        )


def checked_id(value: object) -> str:
    """`value` if it is a sandbox id. Raises ValueError."""
    if not isinstance(value, str) or not _SANDBOX_ID.fullmatch(value):
        raise ValueError(f"sandbox_id: {value!r} is not 1 to 40 characters a-z, 0-9")
    return value


@dataclass(frozen=True, slots=True)
class Launched:
    """A sandbox that has processes."""

    sandbox_id: str
    slot: int
    address: IPv4Address
    pid: int
    paused: bool = False

    def to_json(self) -> dict[str, Any]:
        """The form that travels."""
        return {
            "sandbox_id": self.sandbox_id,
            "slot": self.slot,
            "address": str(self.address),
            "pid": self.pid,
            "paused": self.paused,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Launched:
        """The inverse."""
        return cls(
            data["sandbox_id"],
            data["slot"],
            IPv4Address(data["address"]),
            data["pid"],
            data["paused"],
        )


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox has used, and uses. Sizes in bytes."""

    cpu_ns: int
    """Processor time since its cell was made, in nanoseconds."""
    memory: int
    cache: int
    """Memory beside `memory` that holds files, and is given up when it is short."""
    disk: int
    disk_size: int

    def to_json(self) -> list[int]:
        """The form that travels."""
        return [self.cpu_ns, self.memory, self.cache, self.disk, self.disk_size]

    @classmethod
    def from_json(cls, data: list[int]) -> Usage:
        """The inverse."""
        return cls(*data)


def write_attachment(data: bytes) -> int:
    """A memory file that holds `data`. Returns its descriptor."""
    fd = os.memfd_create("sandgate", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def read_attachment(fd: int) -> dict[str, Any]:
    """The JSON object in a memory file. Raises ValueError.

    Nothing else is read: the sender could let a pipe or a file of its own file system wait.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        raise ValueError("attachment is not a memory file") from None
    size = os.fstat(fd).st_size
    if size > _MAX_ATTACHMENT:
        raise ValueError(f"attachment larger than {_MAX_ATTACHMENT} bytes")
    value = json.loads(os.pread(fd, size, 0))
    if not isinstance(value, dict):
        raise ValueError("attachment is not a JSON object")
    return value
