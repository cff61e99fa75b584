"""Messages between control and launcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sandgate.policy import parse_policy
from sandgate.runtime.protocol import (
    SandboxSpec,
    checked_id,
    read_attachment,
    write_attachment,
)

SPEC = SandboxSpec(
    sandbox_id="i0123456789abcdefghij",
    template="base",
    cpu_count=2,
    memory_mb=512,
    disk_mb=1024,
    max_pids=100,
    policy=parse_policy(["*.example.com", "1.2.3.0/24"], ["0.0.0.0/0"]),
)


def test_a_specification_survives_the_way() -> None:
    assert SandboxSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sandbox_id", "../../etc"),
        ("sandbox_id", ""),
        ("sandbox_id", "a" * 41),
        ("sandbox_id", 7),
        ("template", "../base"),
        ("template", "a/b"),
        ("memory_mb", -1),
        ("memory_mb", "512"),
        ("max_pids", 0),
        ("cpu_count", 1e9),
    ],
)
def test_what_a_compromised_control_could_send_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        SandboxSpec.from_json({**SPEC.to_json(), field: value})


def test_attachments_hold_more_than_a_message_could() -> None:
    fd = write_attachment(b'{"names": "' + b"x" * (1 << 20) + b'"}')
    try:
        assert len(read_attachment(fd)["names"]) == 1 << 20
    finally:
        os.close(fd)


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense"])
def test_attachments_that_are_no_object_are_refused(data: bytes) -> None:
    fd = write_attachment(data)
    try:
        with pytest.raises(ValueError, match=r"."):
            read_attachment(fd)
    finally:
        os.close(fd)


def test_only_memory_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    pipe = os.pipe()
    fds = [*pipe, os.open(tmp_path / "file", os.O_RDONLY), os.open(tmp_path, os.O_PATH)]
    try:
        for fd in fds:
            with pytest.raises(ValueError, match="not a memory file"):
                read_attachment(fd)
    finally:
        for fd in fds:
            os.close(fd)


def test_ids_are_what_a_host_name_can_carry() -> None:
    assert checked_id("i123abc") == "i123abc"
    for bad in ("I123", "a-b", "a.b", "a/b", None):
        with pytest.raises(ValueError, match="sandbox_id"):
            checked_id(bad)
