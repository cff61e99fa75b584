"""Metrics, logs and idempotency keys of real sandboxes through the SDK."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from e2b import InvalidArgumentException, Sandbox, SandboxException, SandboxNotFoundException

from e2e import front
from e2e.box import until

Make = Callable[..., Sandbox]


@pytest.mark.timeout(120)
def test_metrics_tell_what_a_sandbox_does(sandboxes: Make) -> None:
    sandbox = sandboxes(timeout=300)
    created = datetime.now(UTC)
    sandbox.files.write("big", b"x" * 50_000_000)
    busy = sandbox.commands.run("while :; do :; done", background=True, timeout=0)
    until(lambda: len(sandbox.get_metrics()) >= 3, 40)
    busy.kill()
    samples = sandbox.get_metrics()
    first, last = samples[0], samples[-1]
    assert last.cpu_count == 1 and 50 < last.cpu_used_pct <= 100
    assert last.mem_total == 512 << 20 and 1 << 20 < last.mem_used < last.mem_total
    assert last.mem_used + last.mem_cache <= last.mem_total
    assert 450 << 20 < last.disk_total <= 512 << 20
    assert 50_000_000 < last.disk_used < 100_000_000
    gap = (last.timestamp - first.timestamp).total_seconds() / (len(samples) - 1)
    assert 4 < gap < 8
    assert sandbox.get_metrics(end=created - timedelta(hours=1)) == []
    assert len(sandbox.get_metrics(start=last.timestamp)) >= 1

    many = front.api("GET", f"/sandboxes/metrics?sandbox_ids={sandbox.sandbox_id},inone").json
    assert set(many["sandboxes"]) == {sandbox.sandbox_id}

    sandbox.pause()
    assert len(sandbox.get_metrics()) >= len(samples)
    resumed = Sandbox.connect(sandbox.sandbox_id)
    assert len(resumed.get_metrics()) >= len(samples)
    sandbox.kill()
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_metrics()


def test_logs_tell_what_happened(sandboxes: Make) -> None:
    sandbox = sandboxes(network={"deny_out": ["1.1.1.1"]})
    sandbox.set_timeout(77)
    sandbox.pause()
    sandbox = Sandbox.connect(sandbox.sandbox_id)
    logs = front.api("GET", f"/v2/sandboxes/{sandbox.sandbox_id}/logs").json["logs"]
    messages = [entry["message"] for entry in logs]
    assert messages[:5] == [
        "Sandbox started",
        "Network policy in force",
        "End of the sandbox's time changed",
        "Sandbox paused",
        "Sandbox resumed",
    ]
    assert logs[1]["fields"] == {"deny_out": "1.1.1.1"}
    old = front.api("GET", f"/sandboxes/{sandbox.sandbox_id}/logs?limit=1").json
    assert json.loads(old["logs"][0]["line"])["message"] == "Sandbox started"


def test_an_idempotency_key_makes_one_sandbox(node: object) -> None:
    key = str(uuid.uuid4())
    first = Sandbox.create(timeout=60, idempotency_key=key)
    try:
        again = Sandbox.create(timeout=60, idempotency_key=key)
        assert again.sandbox_id == first.sandbox_id
        assert again.commands.run("echo same").stdout == "same\n"
        with pytest.raises(SandboxException, match="422"):
            Sandbox.create(timeout=61, idempotency_key=key)
    finally:
        assert first.kill()
    with pytest.raises(InvalidArgumentException):
        Sandbox.create(timeout=60, idempotency_key="UPPER")
