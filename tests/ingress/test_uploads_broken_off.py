"""A sandbox that goes away while it is sent something."""

from __future__ import annotations

import asyncio
import json

import pytest

from ingress.harness import Gate, connected, hang_up, serving
from sandgate.ingress.pages import NO_ANSWER, NOT_FOUND
from sandgate.ingress.routes import Route


async def upload(gate: Gate, host: str, pause: float) -> tuple[int, object]:
    """Send a body without an end; status and JSON of the answer that comes meanwhile."""
    reader, writer = await asyncio.open_connection(
        str(gate.address), gate.port, ssl=gate.tls(), server_hostname=host.partition(":")[0]
    )

    async def send() -> None:
        head = f"POST /files HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        while True:
            writer.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
            await writer.drain()
            await asyncio.sleep(pause)

    sending = asyncio.create_task(send())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.read()
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        await hang_up(writer)
    assert b"application/json" in head
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize("pause", [0.005, 0.05])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("ended", [False, True])
async def test_an_upload_that_breaks_off_is_answered_in_json(
    gate: Gate, ended: bool, known: bool, pause: float
) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET"):
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            return
        await reader.readexactly(20_000)
        begun.set()
        await go.wait()
        writer.transport.abort()

    async with (
        connected(gate, Route("abc", gate.sandbox(1))) as client,
        serving(gate.sandbox(1), break_off) as port,
    ):
        if known:
            assert (await gate.request(gate.host(port, "abc"))).status_code == 204
        answer = asyncio.create_task(upload(gate, gate.host(port, "abc"), pause))
        await asyncio.wait_for(begun.wait(), 10)
        if ended:
            await client.remove("abc")
        go.set()
        status, body = await asyncio.wait_for(answer, 10)
    assert status == 502 and isinstance(body, dict)
    message = (NOT_FOUND if ended else NO_ANSWER).message
    body.pop("port", None)
    assert body == {"sandboxId": "abc", "message": message, "code": 502}
