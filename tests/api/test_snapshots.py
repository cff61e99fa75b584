"""Snapshots and forks over the wire (wire contract, 2.2)."""

from __future__ import annotations

import httpx
import pytest

from api.test_sandboxes import create


async def test_snapshots_are_listed_page_by_page_and_deleted(api: httpx.AsyncClient) -> None:
    one, other = [(await create(api))["sandboxID"] for _ in range(2)]
    made = []
    for sandbox, body in ((one, {}), (one, {"name": "a/b-c"}), (other, {"memory": False})):
        answer = await api.post(f"/sandboxes/{sandbox}/snapshots", json=body)
        assert answer.status_code == 201
        made.append(answer.json())
    assert [item["names"] for item in made] == [[], ["a/b-c"], []]
    seen, params = [], {"limit": "2"}
    while True:
        answer = await api.get("/snapshots", params=params)
        seen += answer.json()
        if not (token := answer.headers.get("X-Next-Token")):
            break
        params["nextToken"] = token
    assert seen == made[::-1]
    assert (await api.get("/snapshots", params={"sandboxID": other})).json() == made[2:]
    assert (await api.get("/snapshots", params={"name": "a/b-c"})).json() == [made[1]]
    assert (await api.get("/snapshots", params={"nextToken": "?"})).status_code == 400
    for reference in (made[0]["snapshotID"], "a%2Fb-c"):
        assert (await api.delete(f"/templates/{reference}")).status_code == 204
        answer = await api.delete(f"/templates/{reference}")
        assert (answer.status_code, answer.json()["code"]) == (404, 404)
    assert (await api.get("/snapshots")).json() == made[2:]
    assert (await api.delete("/templates/base")).status_code == 404


async def test_a_sandbox_of_a_snapshot_names_it_as_its_template(api: httpx.AsyncClient) -> None:
    source = (await create(api))["sandboxID"]
    snapshot = (await api.post(f"/sandboxes/{source}/snapshots")).json()["snapshotID"]
    made = await create(api, templateID=snapshot)
    assert made["templateID"] == snapshot
    assert (await api.get(f"/sandboxes/{made['sandboxID']}")).json()["templateID"] == snapshot


async def test_forks_succeed_or_fail_one_by_one(api: httpx.AsyncClient) -> None:
    source = (await create(api))["sandboxID"]
    (only,) = (await api.post(f"/sandboxes/{source}/fork")).json()
    assert only["sandbox"]["sandboxID"] != source and "error" not in only
    answer = await api.post(f"/sandboxes/{source}/fork", json={"count": 5, "timeout": 60})
    assert answer.status_code == 201
    outcomes = answer.json()
    assert [sorted(item) for item in outcomes] == [["sandbox"]] * 3 + [["error"]] * 2
    assert outcomes[4]["error"]["code"] == 429


@pytest.mark.parametrize("count", [0, 21, "2"])
async def test_only_so_many_forks_at_once(api: httpx.AsyncClient, count: object) -> None:
    source = (await create(api))["sandboxID"]
    answer = await api.post(f"/sandboxes/{source}/fork", json={"count": count})
    assert (answer.status_code, answer.json()["code"]) == (400, 400)


@pytest.mark.parametrize("path", ["snapshots", "fork"])
async def test_unknown_sandboxes_are_404(api: httpx.AsyncClient, path: str) -> None:
    answer = await api.post(f"/sandboxes/nonexistingsandbox/{path}", json={})
    assert (answer.status_code, answer.json()["code"]) == (404, 404)
