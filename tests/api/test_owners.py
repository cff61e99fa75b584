"""Nobody sees or touches what is another's: it looks as if it did not exist."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.answers import error
from api.conftest import KEY, make_services
from api.test_sandboxes import create
from node.fakes import World
from sandgate.accounts import OPERATOR, KeyEntry, hash_key, new_key
from sandgate.accounts.keyfile import update_owners
from sandgate.accounts.keyring import KeyRing
from sandgate.api.app import Api, create_app
from sandgate.node.decisions import DecisionHub

NOWHERE = "i" + "0" * 20
BODIES: tuple[dict[str, Any] | None, ...] = (None, {}, {"timeout": 30}, {"nonsense": []})


class Users:
    """The API with the keys of several owners."""

    def __init__(self, world: World, hub: DecisionHub) -> None:
        self.world = world
        self.hub = hub
        self.path = world.data_dir / "keys.json"
        self.app: Api = create_app()
        self.app.answer_for(make_services(world, hub), KeyRing(hash_key(KEY), self.path))
        self._clients: list[httpx.AsyncClient] = []

    def add(self, owner: str, **quota: float | None) -> httpx.AsyncClient:
        """A client with a new key of `owner`."""
        key = new_key()
        entry = KeyEntry(key_hash=hash_key(key), created_at=datetime.now(UTC))
        update_owners(self.path, os.getgid(), lambda all_: all_.with_key(owner, entry, quota))
        return self.client(key)

    def client(self, key: str) -> httpx.AsyncClient:
        """A client with `key`."""
        made = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app),
            base_url="https://api.test",
            headers={"X-API-KEY": key},
        )
        self._clients.append(made)
        return made

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()


@pytest.fixture
async def users(world: World, hub: DecisionHub) -> AsyncIterator[Users]:
    """No owner but the operator yet."""
    made = Users(world, hub)
    yield made
    await made.close()


async def test_every_route_answers_of_anothers_sandbox_as_of_none(users: Users) -> None:
    """Also those that will be added: the routes are taken from the application itself."""
    alice, bob, operator = users.add("alice"), users.add("bob"), users.client(KEY)
    made = (await create(alice))["sandboxID"]
    routes = [
        (method.upper(), path)
        for path, operations in users.app.openapi()["paths"].items()
        if "{sandbox_id}" in path
        for method in operations
    ]
    assert len(routes) >= 14
    before = users.world.store.all()
    for client in (bob, operator):
        for method, path in routes:
            for body in BODIES:
                answers = []
                for name in (made, NOWHERE):
                    url = path.replace("{sandbox_id}", name)
                    answer = await client.request(method, url, json=body)
                    text = answer.text.replace(name, "ID").replace(url, "URL")
                    answers.append((answer.status_code, text, answer.headers.get("content-type")))
                assert answers[0] == answers[1], (method, path, body)
                assert 400 <= answers[0][0] < 500, (method, path, body)
                assert answers[0][0] != 403
    assert users.world.store.all() == before
    assert (await alice.get(f"/sandboxes/{made}")).status_code == 200


async def test_lists_and_metrics_hold_only_what_is_ones_own(users: Users) -> None:
    alice, bob, operator = users.add("alice"), users.add("bob"), users.client(KEY)
    made = {
        client: (await create(client, metadata={"a": "b"}))["sandboxID"]
        for client in (alice, bob, operator)
    }
    for _ in range(2):
        await users.world.node._observer._measure()
    for client, own in made.items():
        for path in ("/v2/sandboxes", "/sandboxes", "/v2/sandboxes?metadata=a%3Db&limit=1"):
            answer = await client.get(path)
            assert [item["sandboxID"] for item in answer.json()] == [own]
            assert "X-Next-Token" not in answer.headers
        found = await client.get(
            "/sandboxes/metrics", params={"sandbox_ids": ",".join(made.values())}
        )
        assert list(found.json()["sandboxes"]) == [own]


async def test_keys_of_one_owner_share_all(users: Users) -> None:
    made = (await create(users.add("alice")))["sandboxID"]
    assert (await users.add("alice").delete(f"/sandboxes/{made}")).status_code == 204


async def test_snapshots_are_their_owners(users: Users) -> None:
    alice, bob = users.add("alice"), users.add("bob")
    made = (await create(alice))["sandboxID"]
    answer = await alice.post(f"/sandboxes/{made}/snapshots", json={"name": "mine"})
    snapshot = answer.json()["snapshotID"]
    for reference in (snapshot, "mine"):
        refused = await bob.post("/v2/sandboxes", json={"templateID": reference})
        unknown = await bob.post("/v2/sandboxes", json={"templateID": "nothing"})
        assert error(refused, 404).replace(reference, "X") == error(unknown, 404).replace(
            "nothing", "X"
        )
        assert error(await bob.delete(f"/templates/{reference}"), 404)
    assert (await bob.get("/snapshots")).json() == []
    assert (await bob.get("/snapshots", params={"sandboxID": made})).json() == []
    own = (await create(bob))["sandboxID"]
    await bob.post(f"/sandboxes/{own}/snapshots", json={"name": "mine"})
    assert len((await bob.get("/snapshots", params={"name": "mine"})).json()) == 1
    (of_alice,) = (await alice.get("/snapshots")).json()
    assert of_alice["snapshotID"] == snapshot
    made = (await create(alice, templateID="mine"))["sandboxID"]
    (fork,) = (await alice.post(f"/sandboxes/{made}/fork", json={"count": 1})).json()
    assert users.world.node.observe(fork["sandbox"]["sandboxID"]).record.owner == "alice"


async def test_idempotency_keys_are_their_owners(users: Users) -> None:
    made = []
    for client in (users.add("alice"), users.add("bob"), users.client(KEY)):
        for _ in range(2):
            answer = await client.post(
                "/v2/sandboxes", json={"templateID": "base"}, headers={"Idempotency-Key": "key-1"}
            )
            made.append(answer.json()["sandboxID"])
    assert made[0::2] == made[1::2] and len(set(made)) == 3


async def test_owners_and_their_sandboxes_outlive_the_process(users: Users) -> None:
    alice, bob = users.add("alice"), users.add("bob")
    made = (await create(alice))["sandboxID"]
    await users.world.restart()
    users.app.state.services = make_services(users.world, users.hub)
    assert (await alice.get(f"/sandboxes/{made}")).status_code == 200
    assert (await bob.get(f"/sandboxes/{made}")).status_code == 404


async def test_a_revoked_key_is_refused_from_the_next_request_on(users: Users) -> None:
    alice = users.add("alice")
    await create(alice)
    update_owners(users.path, os.getgid(), lambda owners: owners.without_keys_of("alice"))
    assert error(await alice.get("/v2/sandboxes"), 401)
    again = users.add("alice")
    assert len((await again.get("/v2/sandboxes")).json()) == 1


async def test_quotas_hold_for_all_sandboxes_of_an_owner(users: Users) -> None:
    memory = users.world.settings.memory_mb
    few = users.add("few", max_sandboxes=1)
    small = users.add("small", memory_mb=2 * memory)
    made = (await create(few))["sandboxID"]
    refused = await few.post("/v2/sandboxes", json={"templateID": "base"})
    assert "quota of 1 sandboxes" in error(refused, 429)
    assert refused.headers["Should-Retry"] == "false"
    (outcome,) = (await few.post(f"/sandboxes/{made}/fork", json={"count": 1})).json()
    assert outcome["error"]["code"] == 429
    await few.post(f"/sandboxes/{made}/pause")
    assert error(await few.post("/v2/sandboxes", json={"templateID": "base"}), 429)
    await few.delete(f"/sandboxes/{made}")
    await create(few)
    for _ in range(2):
        await create(small)
    refused = await small.post("/v2/sandboxes", json={"templateID": "base"})
    assert f"your quota is {2 * memory} MiB" in error(refused, 429)
    users.add("small", memory_mb=-1)
    await create(small)


async def test_creates_beyond_the_rate_are_to_be_repeated_later(users: Users) -> None:
    slow = users.add("slow", creates_per_second=0.01)
    answers = await asyncio.gather(
        *(slow.post("/v2/sandboxes", json={"templateID": "base"}) for _ in range(3))
    )
    assert sorted(answer.status_code for answer in answers) == [201, 429, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "0.01 creates per second" in error(refused, 429)
    assert refused.headers["Should-Retry"] == "true"
    assert 90 <= int(refused.headers["Retry-After"]) <= 100
    await create(users.client(KEY))


async def test_what_was_made_before_there_were_owners_is_the_operators(
    users: Users, tmp_path: Path
) -> None:
    operator = users.client(KEY)
    made = (await create(operator))["sandboxID"]
    assert users.world.node.observe(made).record.owner == OPERATOR
