"""Failure on the wire: always JSON, always saying what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from api.answers import error
from api.conftest import KEY, Served
from node.fakes import World
from sandgate.api import guard
from sandgate.api.errors import error_response


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (None, "is missing: send it in the X-API-KEY header"),
        ("", "is missing"),
        ("e2b_123", "is malformed"),
        (KEY.upper(), "is malformed"),
        (KEY + "\n", "is malformed"),
        ("é", "is malformed"),
        ("e2b_" + "0" * 40, "is not this node's"),
    ],
)
@pytest.mark.parametrize("path", ["/v2/sandboxes", "/nothing", "/sandboxes/x/metrics"])
async def test_without_the_right_key_everything_is_401(
    api: httpx.AsyncClient, key: str | None, words: str, path: str
) -> None:
    del api.headers["X-API-KEY"]
    headers = {} if key is None else {b"X-API-KEY": key.encode()}
    message = error(await api.get(path, headers=headers), 401)
    assert words in message
    assert key is None or key == "" or key.strip() not in message


async def test_a_request_without_a_key_is_refused_before_its_body_is_read(
    api: httpx.AsyncClient,
) -> None:
    del api.headers["X-API-KEY"]
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 1000

    error(await api.post("/v2/sandboxes", content=body()), 401)
    assert read == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "the body is not valid JSON: "),
        (b"", "invalid body: field required; send a JSON object"),
        (b"[]", "invalid body: input should be a valid dictionary"),
        (b"{}", "missing field 'templateID': it is required"),
        (b'{"templateID": 5}', "invalid value 5 for 'templateID': input should be a valid string"),
        (b'{"templateID": ""}', "invalid value '' for 'templateID'"),
        (b'{"templateID": "base", "timeout": "5"}', "invalid value '5' for 'timeout': "),
        (b'{"templateID": "base", "timeout": true}', "invalid value True for 'timeout': "),
        (b'{"templateID": "base", "timeout": 0}', "timeout must be at least 1 second, not 0"),
        (b'{"templateID": "base", "timeout": 9999}', "ask for at most 3600 seconds"),
        (b'{"templateID": "base", "timeout": 1e300}', "'timeout'"),
        (b'{"templateID": "base", "timeout": 1' + b"0" * 30 + b"}", "'timeout'"),
        (b'{"templateID": "base", "timeout": 9999999999}', "less than or equal to 2147483648"),
        (b'{"templateID": "base", "netwrok": {}}', "unknown field 'netwrok'"),
        (b'{"templateID": "base", "network": {"denyIn": []}}', "unknown field 'network.denyIn'"),
        (
            b'{"templateID": "base", "network": {"allowOut": [1]}}',
            "invalid value 1 for 'network.allowOut.0'",
        ),
        (
            b'{"templateID": "base", "network": {"allowOut": "1.1.1.1"}}',
            "for 'network.allowOut': input should be a valid list",
        ),
        (
            b'{"templateID": "base", "network": {"denyOut": ["google.com"]}}',
            "invalid denied CIDR google.com",
        ),
        (
            b'{"templateID": "base", "network": {"allowOut": ["a.com"]}}',
            "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny "
            "out to block all other traffic.",
        ),
        (
            b'{"templateID": "base", "network": {"allowOut": ["1.2.3.4:443"], "denyOut": '
            b'["0.0.0.0/0"]}}',
            "invalid entry '1.2.3.4:443' in allowOut: ports are for names only",
        ),
        (
            b'{"templateID": "base", "network": {"dnsServers": ["dns.google"]}}',
            "invalid entry 'dns.google' in dnsServers: write the IPv4 address of a server",
        ),
        (
            b'{"templateID": "base", "network": {"mode": "off"}}',
            "for 'network.mode': input should be 'enforce' or 'report'",
        ),
        (
            b'{"templateID": "base", "metadata": {"sandgate.network-mode": "on"}}',
            "invalid value 'on' of metadata 'sandgate.network-mode': use enforce or report",
        ),
        (
            b'{"templateID": "base", "network": {"mode": "enforce"}, '
            b'"metadata": {"sandgate.network-mode": "report"}}',
            "metadata 'sandgate.network-mode' says 'report', but network.mode 'enforce': give one",
        ),
        (
            b'{"templateID": "base", "network": {"maskRequestHost": "-https://abcd"}}',
            "invalid maskRequestHost '-https://abcd'",
        ),
        (
            b'{"templateID": "base", "network": {"httpsPorts": [8443, 49983]}}',
            "invalid port 49983 in httpsPorts: it is the sandbox's own daemon's",
        ),
        (
            b'{"templateID": "base", "network": {"httpsPorts": [70000]}}',
            "invalid value 70000 for 'network.httpsPorts.0'",
        ),
        (
            b'{"templateID": "base", "network": {"httpsPorts": [true]}}',
            "invalid value True for 'network.httpsPorts.0'",
        ),
        (b'{"templateID": "base", "envVars": {"A=B": "s3cret"}}', "invalid name 'A=B' in envVars"),
        (b'{"templateID": "base", "envVars": {"A": 5}}', "invalid value for 'envVars.A'"),
        (b'{"templateID": "base", "metadata": {"a": null}}', "invalid value for 'metadata.a'"),
        (b'{"templateID": "base", "metadata": {"a": "\\ud800"}}', "'metadata.a'"),
    ],
)
async def test_bad_input_is_400_and_says_which_field_and_why(
    api: httpx.AsyncClient, world: World, body: bytes, message: str
) -> None:
    answer = await api.post(
        "/v2/sandboxes", content=body, headers={"Content-Type": "application/json"}
    )
    text = error(answer, 400)
    assert message in text
    assert "s3cret" not in text
    assert world.launcher.sandboxes == {}


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("mcp", {"exa": {}}, 501),
        ("iam", {"tokens": {"a": {"audience": "x", "tokenType": "JWT-SVID"}}}, 400),
        ("volumeMounts", [{"name": "a", "path": "/b"}], 501),
        ("network.rules", {"example.com": [{"transform": {}}]}, 400),
        ("network.egressProxy", {"address": "1.1.1.1:1080"}, 400),
    ],
)
async def test_what_is_not_offered_is_refused_by_name(
    api: httpx.AsyncClient, field: str, value: object, status: int
) -> None:
    outer, _, inner = field.partition(".")
    body = {"templateID": "base", outer: {inner: value} if inner else value}
    name = inner or outer
    for path in ("/sandboxes", "/v2/sandboxes"):
        message = error(await api.post(path, json=body), status)
        assert message == f"'{name}' is not supported yet; leave it out"
        error(await api.post(path, json={**body, "timeout": "soon"}), 400)


async def test_v2_sandboxes_cannot_be_unsecured(api: httpx.AsyncClient) -> None:
    body = {"templateID": "base", "secure": False}
    assert "always secured" in error(await api.post("/v2/sandboxes", json=body), 400)


@pytest.mark.parametrize("secure", [None, False])
async def test_v1_private_needs_secure(api: httpx.AsyncClient, secure: bool | None) -> None:
    body = {"templateID": "base", "network": {"allowPublicTraffic": False}, "secure": secure}
    assert error(await api.post("/sandboxes", json=body), 400) == (
        "You cannot create a sandbox without public access unless you enable secure envd access "
        "via 'secure' flag."
    )
    answer = await api.post("/sandboxes", json={**body, "secure": True})
    assert answer.status_code == 201


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"allowPublicTraffic": False}, "'allowPublicTraffic' can be given at create only"),
        ({"maskRequestHost": "a"}, "'maskRequestHost' can be given at create only"),
        ({"httpsPorts": [8443]}, "'httpsPorts' can be given at create only"),
        ({"denyOut": ["a.com"]}, "invalid denied CIDR a.com"),
        ({"allowOut": ["a.com"]}, "you must include 'ALL_TRAFFIC'"),
        ({"allow_internet_access": "no"}, "invalid value 'no' for 'allow_internet_access'"),
        ({"denyout": []}, "unknown field 'denyout'"),
    ],
)
async def test_a_bad_network_update_is_400_and_changes_nothing(
    api: httpx.AsyncClient, world: World, body: dict[str, Any], message: str
) -> None:
    made = (await api.post("/v2/sandboxes", json={"templateID": "base"})).json()
    del world.log[:]
    answer = await api.put(f"/sandboxes/{made['sandboxID']}/network", json=body)
    assert message in error(answer, 400)
    assert world.log == []


async def test_an_update_with_what_is_not_offered_is_400_and_changes_nothing(
    api: httpx.AsyncClient, world: World
) -> None:
    made = (await api.post("/v2/sandboxes", json={"templateID": "base"})).json()
    del world.log[:]
    answer = await api.put(f"/sandboxes/{made['sandboxID']}/network", json={"rules": {"a.com": []}})
    assert error(answer, 400) == "'rules' is not supported yet; leave it out"
    assert world.log == []


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=0", "for 'limit'"),
        ("limit=101", "for 'limit'"),
        ("limit=x", "for 'limit'"),
        ("order=up", "invalid order 'up': use asc or desc"),
        ("state=dead", "invalid state 'dead'"),
        ("startedAfter=yesterday", "invalid startedAfter 'yesterday'"),
        ("startedAfter=2026-01-01T00:00:00", "with its time zone"),
        ("startedAfter=0001-01-01T00:00:00%2B14:00", "invalid startedAfter"),
        ("metadata=novalue", "invalid metadata 'novalue'"),
        ("metadata=a%3D%2525ff", "invalid metadata"),
        ("nextToken=!!", "invalid nextToken '!!'"),
        ("nextToken=aGVsbG8", "invalid nextToken"),
    ],
)
async def test_bad_query_parameters_are_400(
    api: httpx.AsyncClient, query: str, message: str
) -> None:
    assert message in error(await api.get(f"/v2/sandboxes?{query}"), 400)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/sandboxes/{}", None),
        ("DELETE", "/sandboxes/{}", None),
        ("POST", "/sandboxes/{}/timeout", {"timeout": 5}),
        ("POST", "/sandboxes/{}/refreshes", {}),
        ("POST", "/sandboxes/{}/connect", {"timeout": 5}),
        ("POST", "/v2/sandboxes/{}/connect", {}),
        ("PUT", "/sandboxes/{}/network", {}),
    ],
)
async def test_an_unknown_sandbox_is_404_and_an_impossible_id_400(
    api: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    unknown = await api.request(method, path.format("nonexistingsandbox"), json=body)
    assert error(unknown, 404) == "Sandbox nonexistingsandbox not found"
    for bad in ("UPPER", "i123-a_b", "..%00"):
        answer = await api.request(method, path.format(bad), json=body)
        assert "Invalid sandbox ID" in error(answer, 400)


async def test_an_unknown_template_is_404(api: httpx.AsyncClient) -> None:
    message = error(await api.post("/v2/sandboxes", json={"templateID": "x/y:z"}), 404)
    assert message.startswith("template 'x/y:z' not found; templates of this node: base")


async def test_whether_a_template_exists_is_told(api: httpx.AsyncClient) -> None:
    answer = await api.get("/templates/aliases/base")
    assert (answer.status_code, answer.json()) == (200, {"templateID": "base", "public": True})
    message = error(await api.get("/templates/aliases/my%2Fname%3Atag"), 404)
    assert message.startswith("template 'my/name:tag' not found")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v3/templates"),
        ("GET", "/templates/base"),
        ("DELETE", "/templates/tags"),
        ("POST", "/volumes"),
        ("GET", "/secrets/one"),
        ("GET", "/events/sandboxes/iabc"),
        ("POST", "/events/webhooks"),
    ],
)
async def test_what_comes_later_is_501(api: httpx.AsyncClient, method: str, path: str) -> None:
    assert "does not offer" in error(await api.request(method, path), 501)


async def test_unknown_routes_and_methods_are_json_too(api: httpx.AsyncClient) -> None:
    assert error(await api.get("/v9/nothing"), 404) == "there is no /v9/nothing here"
    assert error(await api.get("/v2/sandboxes/"), 404)
    refused = await api.put("/v2/sandboxes")
    assert error(refused, 405) == "PUT is not possible on /v2/sandboxes"
    long = error(await api.get("/" + "a" * 30_000), 404)
    assert long.startswith("there is no /aaa") and len(long) < 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v2/sandboxes", "GET, POST"),
        ("HEAD", "/v2/sandboxes", "GET, POST"),
        ("PATCH", "/sandboxes/i1", "DELETE, GET"),
        ("GET", "/sandboxes/i1/network", "PATCH, PUT"),
        ("PUT", "/sandboxes/metrics", "DELETE, GET"),
        ("PUT", "/templates/one", "DELETE, GET, PATCH, POST"),
        ("POST", "/health", "GET"),
        ("POST", "/openapi.json", "GET, HEAD"),
    ],
)
async def test_a_405_names_every_method_that_is_possible(
    api: httpx.AsyncClient, method: str, path: str, allowed: str
) -> None:
    refused = await api.request(method, path)
    assert refused.status_code == 405
    assert refused.headers["Allow"] == allowed


@pytest.mark.parametrize(
    "request_",
    [
        "FOO /health HTTP/1.1\r\nHost: a\r\n\r\n",
        "get /health HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nX: a\x01b\r\n\r\n",
        "GET http://a HTTP/1.1\r\nHost: a\r\n\r\n",
        "\x16\x03\x01\r\n\r\n",
        "POST /health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
async def test_what_is_not_http_is_400_in_json(served: Served, request_: str) -> None:
    reader, writer = await asyncio.open_connection(*served.listener.getsockname())
    try:
        writer.write(request_.encode())
        head, _, body = (await asyncio.wait_for(reader.read(), 5)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n")
    assert json.loads(body) == {"code": 400, "message": "the request is not valid HTTP"}


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large_is_413(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    monkeypatch.setattr(guard, "MAX_BODY", 10_000)

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 1000

    content = b" " * 20_000 if declared else stream()
    answer = await api.post("/v2/sandboxes", content=content)
    assert "at most 10000 bytes" in error(answer, 413)


@pytest.mark.parametrize(("pieces", "pause"), [(1, 10), (500, 0.02)])
async def test_a_body_that_does_not_arrive_is_408(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, pieces: int, pause: float
) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield b" "
            await asyncio.sleep(pause)

    error(await api.post("/v2/sandboxes", content=stream()), 408)


async def test_names_that_are_no_text_are_refused(api: httpx.AsyncClient) -> None:
    body = b'{"templateID": "base", "\\ud800": 1}'
    headers = {"Content-Type": "application/json"}
    answer = await api.post("/v2/sandboxes", content=body, headers=headers)
    assert "unicode" in error(answer, 400)


def test_a_message_can_always_be_encoded() -> None:
    body = bytes(error_response(400, "not \ud800 text").body)
    assert body == b'{"code":400,"message":"not ? text"}'
