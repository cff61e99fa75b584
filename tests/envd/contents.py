"""Files over plain HTTP, as the SDKs move them."""

from __future__ import annotations

import httpx

OCTETS = {"Content-Type": "application/octet-stream"}


def put(client: httpx.Client, path: str, data: bytes, **headers: str) -> httpx.Response:
    return client.post("/files", params={"path": path}, content=data, headers={**OCTETS, **headers})


def get(client: httpx.Client, path: str, **headers: str) -> httpx.Response:
    return client.get("/files", params={"path": path}, headers={"Accept-Encoding": "", **headers})


def message(response: httpx.Response) -> str:
    body = response.json()
    assert body["code"] == response.status_code
    return str(body["message"])
