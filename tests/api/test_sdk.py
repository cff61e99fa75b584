"""The official SDK against the API: every status arrives as the exception it documents."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    RateLimitException,
    Sandbox,
    SandboxException,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)
from e2b.exceptions import ServiceBusyException

from api.conftest import DOMAIN, Served
from node.fakes import lost
from sandgate.node import admittance
from sandgate.node.admission import Readings
from sandgate.policy import EgressPolicy, parse_policy
from sandgate.runtime.client import LauncherError

DENY_ALL = "0.0.0.0/0"


def test_create_info_list_and_kill(served: Served) -> None:
    sandbox = Sandbox.create(timeout=120, metadata={"user": "a b&c"}, envs={"X": "1"})
    assert sandbox.get_host(3000) == f"3000-{sandbox.sandbox_id}.{DOMAIN}"
    info = sandbox.get_info()
    assert (info.sandbox_id, info.template_id, info.name) == (sandbox.sandbox_id, "base", "base")
    assert (info.state, info.cpu_count, info.memory_mb) == (SandboxState.RUNNING, 2, 1024)
    assert info.metadata == {"user": "a b&c"}
    assert info.end_at - info.started_at == pytest.approx(
        timedelta(seconds=120), abs=timedelta(seconds=1)
    )
    other = Sandbox.create("code-interpreter-v1")
    assert [item.sandbox_id for item in Sandbox.list().next_items()] == [
        other.sandbox_id,
        sandbox.sandbox_id,
    ]
    found = Sandbox.list(query=SandboxQuery(metadata={"user": "a b&c"})).next_items()
    assert [item.sandbox_id for item in found] == [sandbox.sandbox_id]
    assert sandbox.kill() is True
    assert sandbox.kill() is False
    assert Sandbox.kill("nonexistingsandbox") is False
    with pytest.raises(SandboxNotFoundException):
        sandbox.get_info()


def test_pages(served: Served) -> None:
    made = [Sandbox.create().sandbox_id for _ in range(5)]
    pages = Sandbox.list(limit=2, order="asc")
    seen: list[list[str]] = []
    while pages.has_next:
        seen.append([item.sandbox_id for item in pages.next_items()])
    assert seen == [made[:2], made[2:4], made[4:]]


def test_set_timeout_may_shorten_and_connect_does_not(served: Served) -> None:
    sandbox = Sandbox.create(timeout=200)

    def left() -> timedelta:
        return sandbox.get_info().end_at - datetime.now(UTC)

    sandbox.set_timeout(100)
    assert timedelta(seconds=95) < left() <= timedelta(seconds=100)
    again = Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert again.sandbox_id == sandbox.sandbox_id
    assert timedelta(seconds=95) < left()
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert timedelta(seconds=290) < left()
    for call in (
        lambda: Sandbox.set_timeout("nonexistingsandbox", 10),
        lambda: Sandbox.connect("nonexistingsandbox"),
        lambda: Sandbox.update_network("nonexistingsandbox", {}),
    ):
        with pytest.raises(SandboxNotFoundException):
            call()


def test_connect_gives_the_tokens_of_create(served: Served) -> None:
    sandbox = Sandbox.create(network={"allow_public_traffic": False})
    again = Sandbox.connect(sandbox.sandbox_id)
    assert sandbox.traffic_access_token is not None
    assert again.traffic_access_token == sandbox.traffic_access_token
    assert again.connection_config.sandbox_headers == sandbox.connection_config.sandbox_headers


def test_the_network_at_create_and_its_update(served: Served) -> None:
    sandbox = Sandbox.create(
        network={
            "allow_out": ["google.com", "1.1.1.1"],
            "deny_out": lambda context: [context.all_traffic],
            "mask_request_host": "localhost:${PORT}",
            "https_ports": [8443],
        }
    )
    policies = served.world.launcher.policies
    policy = parse_policy(["google.com", "1.1.1.1"], [DENY_ALL])
    assert policies[sandbox.sandbox_id] == policy
    network: Any = sandbox.get_info().network
    assert network["allow_out"] == ["google.com", "1.1.1.1"]
    assert network["mask_request_host"] == "localhost:${PORT}"
    assert network["https_ports"] == [8443]
    sandbox.update_network({"allow_internet_access": False})
    assert policies[sandbox.sandbox_id] == parse_policy(None, [DENY_ALL])
    sandbox.update_network({})
    assert policies[sandbox.sandbox_id] == EgressPolicy()
    with pytest.raises(SandboxException, match=r"^400: invalid denied CIDR example\.com") as raised:
        sandbox.update_network({"deny_out": ["example.com"]})
    assert raised.value.status_code == 400


def test_what_cannot_be_had_is_told(served: Served) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_" + "0" * 40)
    with pytest.raises(SandboxException, match="404: template 'nope' not found"):
        Sandbox.create("nope")
    with pytest.raises(SandboxException, match="400: 'egressProxy' is not supported yet"):
        Sandbox.create(network={"egress_proxy": {"address": "1.1.1.1:1080"}})
    for _ in range(5):
        Sandbox.create()
    with pytest.raises(RateLimitException, match="limit of 5 sandboxes"):
        Sandbox.create()


def test_a_machine_that_is_short_of_something_is_told_as_the_sdk_documents(served: Served) -> None:
    served.world.gauge.readings = Readings(memory_mb=1)
    with pytest.raises(RateLimitException, match="1 MiB of the machine's memory"):
        Sandbox.create()
    time.sleep(admittance.FRESH_SECONDS)
    served.world.gauge.readings = Readings(disk_mb=1)
    with pytest.raises(SandboxException, match=r"507: .* 1 MiB are free in data_dir") as raised:
        Sandbox.create()
    assert raised.value.status_code == 507
    assert served.world.log.count("launcher.create") == 0


def test_a_create_that_fails_for_a_moment_is_repeated_by_the_sdk(served: Served) -> None:
    served.world.launcher.failures["create"] = [lost()]
    sandbox = Sandbox.create()
    assert [item.sandbox_id for item in served.world.store.all()] == [sandbox.sandbox_id]
    served.world.launcher.failures["create"] = [LauncherError("mount failed")]
    creates = served.world.log.count("launcher.create")
    with pytest.raises(SandboxException, match=r"500: .* mount failed"):
        Sandbox.create()
    assert served.world.log.count("launcher.create") == creates + 1
    served.world.launcher.connected = False
    with pytest.raises(ServiceBusyException):
        Sandbox.create(retries=0)


def test_updates_from_many_threads_leave_one_of_them_in_force(served: Served) -> None:
    sandbox = Sandbox.create()
    threads = [
        threading.Thread(target=sandbox.update_network, args=({"deny_out": [f"1.1.1.{number}"]},))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    (entry,) = served.world.egress.entries.values()
    network: Any = sandbox.get_info().network
    assert entry.policy == served.world.launcher.policies[sandbox.sandbox_id]
    assert entry.policy == parse_policy(None, network["deny_out"])


async def test_the_asynchronous_sdk(served: Served) -> None:
    sandbox = await AsyncSandbox.create(allow_internet_access=False)
    assert (await sandbox.get_info()).allow_internet_access is False
    await sandbox.set_timeout(50)
    await sandbox.update_network({"allow_internet_access": True})
    again = await AsyncSandbox.connect(sandbox.sandbox_id)
    assert await again.kill() is True
    assert await sandbox.kill() is False
    with pytest.raises(SandboxNotFoundException):
        await AsyncSandbox.connect(sandbox.sandbox_id)
