"""Who is let in by envd, and what it tells of itself."""

from __future__ import annotations

import time
from pathlib import Path

import httpx

from envd.contents import OCTETS, get, message, put
from envd.harness import TOKEN, Daemon, running, unary
from envd.launcher import MEASURE
from sandgate.envd import EnvdConfig
from sandgate.envd.auth import sign


def test_every_request_needs_the_token_but_health(daemon: Daemon) -> None:
    paths = ["/envs", "/metrics", "/nowhere", "/process.Process/List", "/files/compose", "/init"]
    for token in (None, "", "wrong", "é".encode(), b"\xff"):
        with daemon.client(token=token) as client:
            assert client.get("/health").status_code == 204
            for path in paths:
                for method in ("GET", "POST", "DELETE"):
                    answer = client.request(method, path)
                    assert answer.status_code == 401
                    assert "provide a valid access token" in message(answer)
            assert get(client, "/etc/passwd").status_code == 401
            assert put(client, "x", b"").status_code == 401


def test_a_signed_url_gives_access_to_one_file(client: httpx.Client, daemon: Daemon) -> None:
    put(client, "shared file", b"shared")
    expiration = str(int(time.time()) + 60)
    query = {
        "path": "shared file",
        "username": "user",
        "signature": sign(TOKEN, "shared file", "read", "user", expiration),
        "signature_expiration": expiration,
    }
    with daemon.client(token=None) as anyone:
        assert anyone.get("/files", params=query).content == b"shared"
        changed = anyone.get("/files", params={**query, "path": "/etc/passwd"})
        assert message(changed) == "invalid signature"
        assert anyone.post("/files", params=query, content=b"", headers=OCTETS).status_code == 401
        query["signature"] = sign(TOKEN, "shared file", "read", "user", "1")
        expired = anyone.get("/files", params={**query, "signature_expiration": "1"})
        assert expired.json() == {"code": 401, "message": "signature is already expired"}


def test_without_a_token_everyone_is_let_in(tmp_path: Path) -> None:
    config = EnvdConfig("i", "t", None, {}, default_user="root", default_workdir="/tmp")
    with running(tmp_path, config) as daemon, daemon.client(token=None) as client:
        assert put(client, "open", b"x").json()[0]["path"] == "/root/open"
        assert unary(client, "ListDir", {"path": ""}).json() == {"entries": []}


def test_the_orchestrators_endpoints_do_not_exist(client: httpx.Client) -> None:
    for path in ("/init", "/freeze", "/unfreeze", "/fsfreeze", "/fsthaw", "/collapse", "/upgrade"):
        answer = client.post(path, json={})
        assert answer.status_code == 404 and path in message(answer)
    assert client.get("/process.Process/List").status_code == 405


def test_the_environment_and_identity_are_told(client: httpx.Client, daemon: Daemon) -> None:
    answer = client.get("/envs")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.json() == {
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": "isandbox",
        "E2B_TEMPLATE_ID": "base",
        "FROM_CREATE": "yes",
    }
    assert (daemon.root / "run/e2b/.E2B_SANDBOX_ID").read_text() == "isandbox"


def test_metrics_are_numbers(client: httpx.Client) -> None:
    client.get("/metrics")
    metrics = client.get("/metrics").json()
    assert set(metrics) == {
        "ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache",
        "mem_total_mib", "mem_used_mib", "disk_used", "disk_total",
    }  # fmt: skip
    assert metrics["mem_total"] == MEASURE.memory_limit and metrics["mem_total_mib"] == 100
    assert metrics["mem_used"] == MEASURE.memory and metrics["mem_cache"] == MEASURE.cache
    assert metrics["cpu_count"] == MEASURE.cpu_count
    assert 0 <= metrics["cpu_used_pct"] <= 100 and 0 < metrics["disk_used"] < metrics["disk_total"]


def test_browsers_of_any_origin_are_let_in_and_the_server_is_not_named(
    client: httpx.Client,
) -> None:
    preflight = client.options(
        "/files",
        headers={"Origin": "https://x", "Access-Control-Request-Headers": "x-access-token"},
    )
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Headers"] == "x-access-token"
    answer = client.get("/envs", headers={"Origin": "https://x"})
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert "Server" not in answer.headers and "Server" not in client.get("/nowhere").headers
