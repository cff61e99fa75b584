"""From create to kill, and what the API says in between."""

from __future__ import annotations

import asyncio
import urllib.request
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from sdk.conformance.base import (
    SDK,
    Run,
    check,
    done,
    fetched,
    member,
    raised,
    until,
)


@check("Sandbox.create")
async def _(run: Run) -> None:
    run.sandbox = await run.create(timeout=900, metadata={"run": "a b&c=d"}, envs={"GIVEN": "yes"})
    assert (await run.sh("echo $GIVEN")).stdout == "yes\n"


@check("Sandbox.create(secure)")
async def _(run: Run) -> None:
    sandbox = await run.create(secure=True)
    await done(sandbox.files.write("a", "b"))


@check("Sandbox.create(allow_internet_access)")
async def _(run: Run) -> None:
    closed = await run.create(allow_internet_access=False)
    command = "curl -sk -m 5 -o /dev/null https://1.1.1.1"
    await raised(SDK.CommandExitException, lambda: closed.commands.run(command))
    await run.sh(command)


@check("Sandbox.create(network)")
async def _(run: Run) -> None:
    only = await run.create(network={"deny_out": ["0.0.0.0/0"], "allow_out": ["1.1.1.1"]})
    await done(only.commands.run("curl -sk -m 5 -o /dev/null https://1.1.1.1"))
    await raised(
        SDK.CommandExitException, lambda: only.commands.run("curl -sk -m 5 https://8.8.8.8")
    )


@check("Sandbox.create(idempotency_key)")
async def _(run: Run) -> None:
    key = f"key-{uuid.uuid4().hex}"
    first = await run.create(idempotency_key=key)
    second = await run.create(idempotency_key=key)
    assert first.sandbox_id == second.sandbox_id, "the same key made two sandboxes"


@check("Sandbox.connect")
async def _(run: Run) -> None:
    other = await done(run.Sandbox.connect(run.sandbox.sandbox_id, timeout=10))
    assert (await done(other.commands.run("echo $GIVEN"))).stdout == "yes\n"
    info = await done(other.get_info())
    # The first SDKs of 2.x set the time-out when they connect; later ones let the node extend it.
    if hasattr(run.Sandbox, "pause"):
        assert info.end_at - datetime.now(UTC) > timedelta(seconds=60), "it was shortened"


@check("Sandbox.list")
async def _(run: Run) -> None:
    query = SDK.SandboxQuery(metadata={"run": "a b&c=d"})
    pages = run.Sandbox.list(query=query, limit=1)
    seen = []
    while pages.has_next:
        seen += [item.sandbox_id for item in await done(pages.next_items())]
    assert run.sandbox.sandbox_id in seen


@check("Sandbox.get_info")
async def _(run: Run) -> None:
    info = await done(run.sandbox.get_info())
    assert (info.sandbox_id, info.metadata) == (run.sandbox.sandbox_id, {"run": "a b&c=d"})
    assert info.started_at < info.end_at


@check("Sandbox.set_timeout")
async def _(run: Run) -> None:
    await done(run.sandbox.set_timeout(1200))
    info = await done(run.sandbox.get_info())
    left = (info.end_at - datetime.now(UTC)).total_seconds()
    assert 1100 < left < 1210, left


@check("Sandbox.is_running")
async def _(run: Run) -> None:
    assert await done(run.sandbox.is_running()) is True


@check("Sandbox.kill")
async def _(run: Run) -> None:
    sandbox = await run.create()
    assert await done(sandbox.kill()) is True
    assert await done(sandbox.kill()) is False
    assert await done(sandbox.is_running()) is False
    assert await done(run.Sandbox.kill("nonexistingsandbox")) is False


@check("Sandbox.get_host")
async def _(run: Run) -> None:
    server = await run.background("python3 -m http.server 3210 --directory /etc")
    url = f"https://{run.sandbox.get_host(3210)}/hostname"
    assert await until(lambda: fetched(url))
    await done(server.kill())


@check("Sandbox.get_metrics")
async def _(run: Run) -> None:
    found = await until(lambda: run.sandbox.get_metrics(), seconds=30)
    assert found[0].cpu_count >= 1 and found[0].mem_total > 0


@check("Sandbox.update_network")
async def _(run: Run) -> None:
    update = member(run.sandbox, "update_network")
    command = "curl -sk -m 5 -o /dev/null https://8.8.8.8"
    await done(update({"deny_out": ["8.8.8.8"]}))
    await raised(SDK.CommandExitException, lambda: run.sandbox.commands.run(command))
    await done(update({}))
    await run.sh(command)


@check("Sandbox.upload_url")
async def _(run: Run) -> None:
    url = run.sandbox.upload_url("signed.txt", use_signature_expiration=100)
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="signed.txt"\r\n\r\n'
        b"signed\r\n--b--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    request = urllib.request.Request(url, body, kind, method="POST")
    await asyncio.to_thread(lambda: urllib.request.urlopen(request).read())
    assert await done(run.sandbox.files.read("signed.txt")) == "signed"


@check("Sandbox.download_url")
async def _(run: Run) -> None:
    await done(run.sandbox.files.write("down load.txt", "down"))
    url = run.sandbox.download_url("down load.txt", use_signature_expiration=100)
    assert await fetched(url) == b"down"


@check("Sandbox.pause")
async def _(run: Run) -> None:
    sandbox = await run.create()
    pause = getattr(sandbox, "pause", None) or member(sandbox, "beta_pause")
    counter = "for i in $(seq 100000); do echo $i > new; mv new count; sleep 0.05; done"
    await done(sandbox.commands.run(counter, background=True, timeout=0))
    await until(lambda: sandbox.files.exists("count"))
    await done(pause())
    assert await done(sandbox.is_running()) is False
    again = await done(run.Sandbox.connect(sandbox.sandbox_id))
    assert again.sandbox_id == sandbox.sandbox_id
    first = int(await done(sandbox.files.read("count")) or 0)
    await asyncio.sleep(0.5)
    assert int(await done(sandbox.files.read("count")) or 0) > first, "the process did not go on"


@check("Sandbox.create(lifecycle)")
async def _(run: Run) -> None:
    sandbox = await run.create(timeout=2, lifecycle={"on_timeout": "pause"})
    await until(lambda: _state(sandbox, "paused"), seconds=20)
    await done(sandbox.connect())
    assert await done(sandbox.is_running()) is True


async def _state(sandbox: Any, wanted: str) -> bool:
    state = (await done(sandbox.get_info())).state
    return bool(getattr(state, "value", state) == wanted)


@check("Sandbox.create_snapshot")
async def _(run: Run) -> None:
    create_snapshot = member(run.sandbox, "create_snapshot")
    await done(run.sandbox.files.write("kept.txt", "kept"))
    snapshot = await done(create_snapshot())
    copy = await run.create(snapshot.snapshot_id)
    assert await done(copy.files.read("kept.txt")) == "kept"


@check("Sandbox.list_snapshots")
async def _(run: Run) -> None:
    member(run.sandbox, "list_snapshots")
    snapshot = await done(run.sandbox.create_snapshot())
    pages = run.sandbox.list_snapshots()
    seen = []
    while pages.has_next:
        seen += [item.snapshot_id for item in await done(pages.next_items())]
    assert snapshot.snapshot_id in seen


@check("Sandbox.delete_snapshot")
async def _(run: Run) -> None:
    delete = member(run.Sandbox, "delete_snapshot")
    snapshot = await done(run.sandbox.create_snapshot())
    assert await done(delete(snapshot.snapshot_id)) is True
    assert await done(delete(snapshot.snapshot_id)) is False


@check("Sandbox.fork")
async def _(run: Run) -> None:
    fork = member(run.sandbox, "fork")
    await done(run.sandbox.files.write("kept.txt", "kept"))
    copies = await done(fork(count=2))
    try:
        assert len(copies) == 2
        for copy in copies:
            assert await done(copy.files.read("kept.txt")) == "kept"
    finally:
        for copy in copies:
            await done(copy.kill())


@check("E2B (bound client)")
async def _(run: Run) -> None:
    client = member(SDK, "E2B")()
    bound = client.AsyncSandbox if run.is_async else client.Sandbox
    other = await done(bound.connect(run.sandbox.sandbox_id))
    assert (await done(other.commands.run("echo hi"))).stdout == "hi\n"
