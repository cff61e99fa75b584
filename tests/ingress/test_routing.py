"""Which sandbox a request reaches, and what the gate answers itself."""

from __future__ import annotations

import asyncio
import json

import pytest

from ingress.harness import (
    BROWSER,
    DOMAIN,
    Gate,
    answering,
    connected,
    echo,
    hang_up,
    seen_headers,
    serving,
    serving_api,
)
from sandgate.ingress.routes import Route


@pytest.mark.parametrize("http2", [False, True])
async def test_the_host_names_port_and_sandbox(gate: Gate, http2: bool) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1)), Route("other", gate.sandbox(2))),
        serving(gate.sandbox(1), echo) as port,
    ):
        host = gate.host(port, "abc")
        response = await gate.request(host, "/a%20b?c=d&e", http2=http2)
        assert response.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
        assert response.status_code == 200
        assert response.text.startswith("GET /a%20b?c=d&e HTTP/1.1\r\n")
        assert seen_headers(response)["host"] == host
        assert (await gate.request(gate.host(port, "other"), http2=http2)).status_code == 502


@pytest.mark.parametrize(
    "pattern",
    [
        "{port}-abc." + DOMAIN,
        "{port}-ABC.Sandgate.LocalHost:8443",
        "{port}-abc-6532622b." + DOMAIN,
        "{port}-abc.any.thing.example",
        "{port}-abc." + DOMAIN + ".",
        "{port}-abc." + DOMAIN + ".:443",
        "0{port}-abc." + DOMAIN,
    ],
)
async def test_hosts_that_reach_a_sandbox(gate: Gate, pattern: str) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        host = pattern.format(port=port)
        if host.startswith("0") and port > 9999:
            host = host.lstrip("0")
        response = await gate.request(host)
        assert response.status_code == 200, response.text
        assert seen_headers(response)["host"] == host


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("abc." + DOMAIN, "Invalid host"),
        ("3000-abc", "Invalid host"),
        ("nodots", "Invalid host"),
        ("sandbox." + DOMAIN, "Invalid host"),
        ("x-abc." + DOMAIN, "Invalid sandbox port"),
        ("-abc." + DOMAIN, "Invalid sandbox port"),
        ("-https://abcd", "Invalid host"),
        ("+80-abc." + DOMAIN, "Invalid sandbox port"),
        ("80x-abc." + DOMAIN, "Invalid sandbox port"),
        ("0-abc." + DOMAIN, "Invalid sandbox port"),
        ("00000-abc." + DOMAIN, "Invalid sandbox port"),
        ("65536-abc." + DOMAIN, "Invalid sandbox port"),
        ("99999-abc." + DOMAIN, "Invalid sandbox port"),
        ("18446744073709551696-abc." + DOMAIN, "Invalid sandbox port"),
        ("3000-a_b." + DOMAIN, "Invalid sandbox ID"),
        ("3000-." + DOMAIN, "Invalid sandbox ID"),
        ("3000--abc." + DOMAIN, "Invalid sandbox ID"),
        ("3000-" + "a" * 64 + "." + DOMAIN, "Invalid sandbox ID"),
    ],
)
async def test_a_host_that_names_no_sandbox_is_400(gate: Gate, host: str, text: str) -> None:
    for agent in ("python-requests/2", BROWSER):
        response = await gate.request(host, headers={"User-Agent": agent})
        assert (response.status_code, response.text) == (400, text)
        assert response.headers["content-type"] == "text/plain; charset=utf-8"


@pytest.mark.parametrize("http2", [False, True])
async def test_a_server_gets_usual_header_names_in_their_usual_form(
    gate: Gate, http2: bool
) -> None:
    sent = {"content-type": "text/a", "X-REQUESTED-WITH": "b", "x-own-Name": "c", "dnt": "1"}
    async with (
        connected(gate, Route("abc", gate.sandbox(1), mask_host="masked.example")),
        serving(gate.sandbox(1), echo) as port,
    ):
        answer = await gate.request(gate.host(port, "abc"), headers=sent, http2=http2)
    names = {line.partition(":")[0] for line in answer.text.split("\r\n")[1:] if line}
    assert names == {
        "Accept", "Accept-Encoding", "Connection", "Content-Type", "DNT", "Host", "User-Agent",
        "X-Forwarded-Host", "X-Requested-With", "x-own-name"
    }  # fmt: skip


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8443", "127.0.0.1", "10.1.2.3:443", "[::1]:8443", f"sandbox.{DOMAIN}"],
)
async def test_headers_route_on_shared_hosts(gate: Gate, host: str) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        routing = {"E2b-Sandbox-Id": "ABC", "E2b-Sandbox-Port": str(port)}
        response = await gate.request(host, headers={**routing, "X-Access-Token": "t0ken"})
        seen = seen_headers(response)
        assert (seen["host"], seen["x-access-token"]) == (host, "t0ken")
        assert (seen["e2b-sandbox-id"], seen["e2b-sandbox-port"]) == ("ABC", str(port))
        for name in routing:
            response = await gate.request(host, headers={name: routing[name]})
            assert response.status_code == 400
            assert response.text.startswith("missing header ")
        for bad, text in (("0", "port"), ("65536", "port"), ("http", "port"), ("", "port")):
            response = await gate.request(host, headers={**routing, "E2b-Sandbox-Port": bad})
            assert (response.status_code, response.text) == (400, f"Invalid sandbox {text}")
        for bad in ("a-b", "a.b", ""):
            response = await gate.request(host, headers={**routing, "E2b-Sandbox-Id": bad})
            assert (response.status_code, response.text) == (400, "Invalid sandbox ID")


async def test_on_a_sandbox_host_the_routing_headers_do_not_route(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1)), Route("victim", gate.sandbox(2))),
        serving(gate.sandbox(1), answering(b"HTTP/1.0 200 OK\r\n\r\nabc")) as port,
        serving(gate.sandbox(2), answering(b"HTTP/1.0 200 OK\r\n\r\nvictim"), port),
    ):
        headers = {"E2b-Sandbox-Id": "victim", "E2b-Sandbox-Port": str(port)}
        response = await gate.request(gate.host(port, "abc"), headers=headers)
        assert response.text == "abc"
        response = await gate.request(gate.host(port, "abc"), headers={"E2b-Sandbox-Id": "victim"})
        assert response.text == "abc"


async def test_the_api_is_at_its_hosts_and_not_where_sandboxes_are_served(gate: Gate) -> None:
    async with serving_api(gate.config.control_socket, echo):
        for host in (f"api.{DOMAIN}", DOMAIN, f"API.{DOMAIN}:8443", "localhost", "127.0.0.1:1"):
            for http2 in (False, True):
                response = await gate.request(host, "/sandboxes", http2=http2)
                assert response.text.startswith("GET /sandboxes HTTP/1.1"), host
            response = await gate.request(host, "/sandboxes", address=gate.inside)
            assert response.status_code == 404
            assert response.json()["code"] == 404
            assert response.headers["content-type"] == "application/json; charset=utf-8"


async def test_routing_headers_do_not_lead_the_api_host_into_a_sandbox(gate: Gate) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))):
        headers = {"E2b-Sandbox-Id": "abc", "E2b-Sandbox-Port": "49983"}
        response = await gate.request(f"api.{DOMAIN}", headers=headers)
        # The API is down in this test; the point is who answers.
        assert response.status_code == 503
        assert response.json() == {"code": 503, "message": "The API is starting or down"}
        assert response.headers["should-retry"] == "true"


async def test_an_api_that_ends_mid_request_must_not_be_asked_again(gate: Gate) -> None:
    async with serving_api(gate.config.control_socket, answering(b"")):
        response = await gate.request(f"api.{DOMAIN}", "/v2/sandboxes", method="POST")
        assert response.status_code == 502
        assert response.json()["code"] == 502
        assert response.headers["should-retry"] == "false"


async def test_sandboxes_reach_sandbox_urls_over_the_inner_address(gate: Gate) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), echo) as port,
    ):
        response = await gate.request(gate.host(port, "abc"), address=gate.inside)
        assert response.status_code == 200


@pytest.mark.parametrize("http2", [False, True])
async def test_an_unknown_sandbox_is_502_in_json(gate: Gate, http2: bool) -> None:
    response = await gate.request(gate.host(49983, "nosuch"), "/health", http2=http2)
    assert response.status_code == 502
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert response.json() == {
        "sandboxId": "nosuch",
        "message": "The sandbox was not found",
        "code": 502,
    }


@pytest.mark.parametrize("http2", [False, True])
async def test_a_closed_port_is_502_in_json_after_about_a_second(gate: Gate, http2: bool) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))):
        started = asyncio.get_running_loop().time()
        response = await gate.request(gate.host(3001, "abc"), http2=http2)
        took = asyncio.get_running_loop().time() - started
        assert response.status_code == 502
        assert response.headers["content-type"] == "application/json; charset=utf-8"
        assert response.json() == {
            "sandboxId": "abc",
            "message": "The sandbox is running but port is not open",
            "port": 3001,
            "code": 502,
        }
        assert 0.8 < took < 2


@pytest.mark.parametrize("http2", [False, True])
@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH_9.2\r\n"])
async def test_a_server_that_answers_nothing_valid_is_502_with_another_message(
    gate: Gate, reply: bytes, http2: bool
) -> None:
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), answering(reply)) as port,
    ):
        response = await gate.request(gate.host(port, "abc"), method="POST", http2=http2)
        assert response.status_code == 502
        body = response.json()
        assert (body["sandboxId"], body["port"], body["code"]) == ("abc", port, 502)
        assert "not open" not in body["message"] and "not found" not in body["message"]


@pytest.mark.parametrize("status", [400, 403, 404, 429, 500, 502, 503, 504])
async def test_errors_of_the_server_itself_pass_unchanged(gate: Gate, status: int) -> None:
    reply = b"HTTP/1.1 %d Own Words\r\nX-Own: yes\r\nContent-Length: 4\r\n\r\nmine" % status
    async with (
        connected(gate, Route("abc", gate.sandbox(1))),
        serving(gate.sandbox(1), answering(reply)) as port,
    ):
        for agent in ("curl/8", BROWSER):
            response = await gate.request(gate.host(port, "abc"), headers={"User-Agent": agent})
            assert (response.status_code, response.text) == (status, "mine")
            assert response.headers["x-own"] == "yes"
            assert response.reason_phrase == "Own Words"


PERSON, PROGRAM = True, False


@pytest.mark.parametrize(
    ("headers", "person"),
    [
        ({"User-Agent": BROWSER}, PERSON),
        ({"User-Agent": "MOZILLA/5.0"}, PERSON),
        ({"User-Agent": BROWSER, "Accept": "text/html,application/xhtml+xml"}, PERSON),
        ({"User-Agent": BROWSER, "Accept": "*/*"}, PERSON),
        ({"User-Agent": BROWSER, "Accept": "application/json"}, PROGRAM),
        ({"User-Agent": BROWSER, "Accept": "application/json, text/html"}, PERSON),
        ({"User-Agent": BROWSER, "Sec-Fetch-Mode": "cors"}, PROGRAM),
        ({"User-Agent": BROWSER, "Sec-Fetch-Mode": "no-cors"}, PROGRAM),
        ({"User-Agent": BROWSER, "Sec-Fetch-Mode": "same-origin"}, PROGRAM),
        ({"User-Agent": BROWSER, "Sec-Fetch-Mode": "websocket"}, PROGRAM),
        ({"User-Agent": BROWSER, "Sec-Fetch-Mode": "navigate"}, PERSON),
        (
            {
                "User-Agent": BROWSER,
                "Sec-Fetch-Mode": "navigate",
                "X-Requested-With": "XMLHttpRequest",
            },
            PERSON,
        ),
        ({"User-Agent": BROWSER, "X-Requested-With": "XMLHttpRequest"}, PROGRAM),
        (
            {"User-Agent": BROWSER, "Sec-Fetch-Mode": "navigate", "Accept": "application/json"},
            PROGRAM,
        ),
        ({"User-Agent": "curl/8.5", "Accept": "text/html"}, PROGRAM),
        ({"User-Agent": "python-httpx/0.28"}, PROGRAM),
        ({"User-Agent": "e2b-js-sdk/2.51.0", "Sec-Fetch-Mode": "cors"}, PROGRAM),
        ({"User-Agent": ""}, PROGRAM),
    ],
)
async def test_a_browser_gets_a_page_and_a_program_json(
    gate: Gate, headers: dict[str, str], person: bool
) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1), "tokentoken")):
        for host, status, title in (
            (gate.host(3000, "nosuch"), 502, "Sandbox Not Found"),
            (gate.host(3000, "abc"), 403, "Private Sandbox"),
        ):
            response = await gate.request(host, headers=headers)
            assert response.status_code == status
            if person:
                assert response.headers["content-type"] == "text/html; charset=utf-8"
                assert response.text.startswith("<html") and response.text.endswith("</html>")
                assert f"<title>{title}</title>" in response.text
            else:
                assert response.headers["content-type"] == "application/json; charset=utf-8"
                assert response.json()["code"] == status


@pytest.mark.parametrize("http2", [False, True])
async def test_the_page_of_a_closed_port_names_sandbox_host_and_port(
    gate: Gate, http2: bool
) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1))):
        response = await gate.request(
            gate.host(3001, "abc"), headers={"User-Agent": BROWSER}, http2=http2
        )
        assert response.status_code == 502
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.text.startswith("<html") and response.text.endswith("</html>")
        for text in ("abc", f"3001-abc.{DOMAIN}", "3001", "The sandbox is running but port is not"):
            assert text in response.text
        assert "://" not in response.text, "the page is self-contained"


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        '"onmouseover="x',
        "'&amp;",
        "%[var(txn.route)]",
        "%41%3Cb%3E",
        "\xe4\xff<b>",
    ],
)
async def test_what_a_client_puts_in_host_is_escaped(gate: Gate, evil: str) -> None:
    reader, writer = await asyncio.open_connection(
        str(gate.address), gate.port, ssl=gate.tls(), server_hostname=DOMAIN
    )
    writer.write(
        b"GET / HTTP/1.1\r\nHost: 3000-nosuch." + evil.encode("latin-1") + b"\r\n"
        b"User-Agent: Mozilla\r\nConnection: close\r\n\r\n"
    )
    page = (await reader.read()).decode("latin-1")
    await hang_up(writer)
    body = page.partition("<body>")[2]
    if page.startswith("HTTP/1.1 400"):
        assert evil not in page, "refused by HAProxy's parser, without an echo"
        return
    assert page.startswith("HTTP/1.1 502")
    host = body.partition("<dt>Host</dt><dd>")[2].partition("</dd>")[0]
    assert host.startswith("3000-nosuch.")
    assert not set(host) & set("<>\"'")
    assert host.isascii()
    assert "127." not in body


async def test_the_log_is_json_without_path_query_or_token(gate: Gate) -> None:
    async with connected(gate, Route("abc", gate.sandbox(1), "sesamesesame")):
        await gate.request(
            gate.host(3001, "abc"),
            "/private-path?signature=hush",
            headers={"e2b-traffic-access-token": "sesamesesame", "X-Access-Token": "hush-hush"},
        )
    lines = [line for line in gate.log.read_text().splitlines() if '"port":"3001"' in line]
    last = json.loads(lines[-1])
    assert (last["sandbox"], last["status"], last["entry"]) == ("abc", 502, "public")
    whole = gate.log.read_text()
    for secret in ("sesame", "hush", "private-path"):
        assert secret not in whole
