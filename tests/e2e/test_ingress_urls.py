"""`https://<port>-<id>.<domain>`: how a request finds its port, and what else it may find."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from e2b import Sandbox

from e2e import front
from e2e.box import Box
from e2e.programs import NODE_JS

APP = 8100
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130.0 Safari/537.36",
    "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    "Sec-Fetch-Mode": "navigate",
}


@pytest.fixture(scope="module")
def app(shared_box: Box) -> Iterator[Box]:
    """A sandbox in which `app.py` runs."""
    source = (Path(__file__).parent / "app.py").read_text()
    shared_box.sandbox.files.write("/home/user/app.py", source)
    with shared_box.serving(APP, "python3 /home/user/app.py {}"):
        yield shared_box


def _headers(seen: dict[str, Any]) -> dict[str, str]:
    """The headers that the application saw, by lower-case name."""
    return {name.lower(): value for name, value in seen["headers"]}


def _url(box: Box, port: int = APP) -> str:
    return f"https://{box.sandbox.get_host(port)}"


@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1", "localhost"])
def test_any_port_is_reached_however_its_server_is_bound(shared_box: Box, address: str) -> None:
    with shared_box.serving(3000, f"python3 -m http.server --bind {address} {{}}"):
        assert "Directory listing" in requests.get(_url(shared_box, 3000), timeout=10).text


def test_the_default_domain_and_port(node: object, shared_box: Box) -> None:
    assert os.environ["E2B_DOMAIN"] == "sandgate.localhost"
    assert shared_box.sandbox.get_host(3000) == (
        f"3000-{shared_box.sandbox.sandbox_id}.sandgate.localhost"
    )


def test_a_request_arrives_as_it_was_sent(app: Box) -> None:
    seen = requests.get(_url(app) + "/a%20path?x=1&y=%2F", headers={"X-One": "two"}, timeout=10)
    headers = _headers(seen.json())
    assert seen.json()["path"] == "/a%20path?x=1&y=%2F"
    assert headers["host"] == app.sandbox.get_host(APP) and headers["x-one"] == "two"
    assert not [name for name in headers if name.startswith("x-forwarded")]


def test_host_is_case_insensitive(app: Box) -> None:
    host = app.sandbox.get_host(APP)
    assert front.ask(host.upper()).status == 200
    assert front.ask(f"{host}:443").status == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "sandbox.sandgate.localhost"])
def test_header_routing_on_hosts_that_are_no_sandboxs(app: Box, host: str) -> None:
    headers = {"E2b-Sandbox-Id": app.sandbox.sandbox_id, "E2b-Sandbox-Port": str(APP)}
    assert front.ask(host, "/routed", headers=headers).json["path"] == "/routed"


@pytest.mark.parametrize("missing", ["E2b-Sandbox-Id", "E2b-Sandbox-Port"])
def test_header_routing_needs_both_headers(app: Box, missing: str) -> None:
    headers = {"E2b-Sandbox-Id": app.sandbox.sandbox_id, "E2b-Sandbox-Port": str(APP)}
    del headers[missing]
    reply = front.ask("localhost", headers=headers)
    assert reply.status == 400 and "header" in reply.text


def test_a_sandboxs_own_host_wins_over_routing_headers(app: Box, other_box: Box) -> None:
    headers = {"E2b-Sandbox-Id": other_box.sandbox.sandbox_id, "E2b-Sandbox-Port": "1"}
    assert front.ask(app.sandbox.get_host(APP), headers=headers).status == 200


@pytest.mark.parametrize("port", ["0", "65536", "99999999999", "abc", "-1", "", "80x", "+80"])
def test_a_port_that_is_none_is_400(shared_box: Box, port: str) -> None:
    reply = front.ask(f"{port}-{shared_box.sandbox.sandbox_id}.sandgate.localhost")
    assert reply.status == 400
    headers = {"E2b-Sandbox-Id": shared_box.sandbox.sandbox_id, "E2b-Sandbox-Port": port}
    assert front.ask("localhost", headers=headers).status == 400


@pytest.mark.parametrize(
    ("host", "text"),
    [
        ("3000-inot_an_id.sandgate.localhost", "Invalid sandbox ID"),
        ("nodash.sandgate.localhost", "Invalid host"),
        ("abc-iabcdefghijklmnopqrst.sandgate.localhost", "Invalid sandbox port"),
    ],
)
def test_a_malformed_host_is_400_in_plain_text(node: object, host: str, text: str) -> None:
    reply = front.ask(host)
    assert (reply.status, reply.text.strip()) == (400, text)
    assert reply.headers.get_content_type() == "text/plain"


def test_an_unknown_sandbox_is_502(node: object) -> None:
    reply = front.ask("3000-iaaaaaaaaaaaaaaaaaaaa.sandgate.localhost")
    assert reply.status == 502
    assert reply.json == {
        "sandboxId": "iaaaaaaaaaaaaaaaaaaaa",
        "message": "The sandbox was not found",
        "code": 502,
    }


def test_a_killed_sandbox_is_502_at_once(sandboxes: Callable[..., Sandbox]) -> None:
    sandbox = sandboxes()
    host = sandbox.get_host(49983)
    assert front.ask(host, "/health").status == 204
    assert sandbox.kill()
    assert front.ask(host, "/health").json["message"] == "The sandbox was not found"
    assert not sandbox.is_running()


def test_a_port_that_is_not_open_is_502_after_a_second_of_retries(shared_box: Box) -> None:
    started = time.monotonic()
    reply = front.ask(shared_box.sandbox.get_host(3999))
    assert 0.5 < time.monotonic() - started < 3
    assert reply.status == 502
    assert reply.json == {
        "sandboxId": shared_box.sandbox.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 3999,
        "code": 502,
    }


def test_a_server_started_a_moment_ago_is_waited_for(shared_box: Box) -> None:
    server = shared_box.sandbox.commands.run(
        "sleep 0.3; exec python3 -m http.server 3777", background=True
    )
    try:
        assert requests.get(_url(shared_box, 3777), timeout=10).status_code == 200
    finally:
        server.kill()


@pytest.mark.parametrize("case", ["sandbox", "port", "token"])
def test_a_person_in_a_browser_sees_a_page(shared_box: Box, private_box: Box, case: str) -> None:
    host = {
        "sandbox": "3000-iaaaaaaaaaaaaaaaaaaaa.sandgate.localhost",
        "port": shared_box.sandbox.get_host(3999),
        "token": private_box.sandbox.get_host(8080),
    }[case]
    reply = front.ask(host, headers=BROWSER)
    assert reply.status == (403 if case == "token" else 502)
    assert reply.headers.get_content_type() == "text/html"
    assert reply.text.strip().lower().startswith(("<!doctype html", "<html"))
    assert "<style" in reply.text and host.split("-")[1].split(".")[0] in reply.text


@pytest.mark.parametrize(
    "headers",
    [
        {**BROWSER, "Sec-Fetch-Mode": "cors"},
        {**BROWSER, "Accept": "application/json", "Sec-Fetch-Mode": ""},
        {"User-Agent": "curl/8.0", "Accept": "*/*"},
    ],
)
def test_a_script_in_a_browser_gets_json(shared_box: Box, headers: dict[str, str]) -> None:
    reply = front.ask(shared_box.sandbox.get_host(3999), headers=headers)
    assert reply.json["code"] == 502


def test_what_a_page_shows_of_the_request_is_escaped(node: object) -> None:
    reply = front.ask('3000-iaaaaaaaaaaaaaaaaaaaa.<b>x"', headers=BROWSER)
    assert "<b>" not in reply.text


@pytest.fixture(scope="module")
def private_box(make_box: Callable[..., Box]) -> Box:
    """A sandbox whose URLs need a token."""
    return make_box(timeout=1800, network={"allow_public_traffic": False})


def test_a_private_url_wants_its_token_before_the_port_is_tried(private_box: Box) -> None:
    host, token = private_box.sandbox.get_host(8100), private_box.sandbox.traffic_access_token
    assert token
    header = "e2b-traffic-access-token"
    identity = {"sandboxId": private_box.sandbox.sandbox_id}
    missing = front.ask(host)
    assert missing.status == 403
    assert missing.json == identity | {
        "message": "Sandbox is secured with traffic access token. "
        f"Token header '{header}' is missing",
        "code": 403,
    }
    for wrong in ("x", token[:-1], token + "x", token.swapcase()):
        reply = front.ask(host, headers={header: wrong})
        assert reply.status == 403
        assert reply.json == identity | {
            "message": "Sandbox is secured with traffic access token. "
            f"Provided token in header '{header}' is invalid",
            "code": 403,
        }
    assert front.ask(host, headers={header: token}).status == 502  # nothing listens yet
    source = (Path(__file__).parent / "app.py").read_text()
    private_box.sandbox.files.write("/home/user/app.py", source)
    with private_box.serving(8100, "python3 /home/user/app.py {}"):
        assert front.ask(host).status == 403
        for name in (header, header.title()):
            reply = front.ask(host, headers={name: token})
            assert reply.status == 200
            assert header not in reply.text.lower() and token not in reply.text


def test_the_token_of_another_sandbox_does_not_do(
    private_box: Box, sandboxes: Callable[..., Sandbox]
) -> None:
    other = sandboxes(network={"allow_public_traffic": False})
    assert other.traffic_access_token != private_box.sandbox.traffic_access_token
    headers = {"e2b-traffic-access-token": other.traffic_access_token or ""}
    assert front.ask(private_box.sandbox.get_host(8100), headers=headers).status == 403
    routed = headers | {
        "E2b-Sandbox-Id": private_box.sandbox.sandbox_id,
        "E2b-Sandbox-Port": "8100",
    }
    assert front.ask("localhost", headers=routed).status == 403


def test_envd_has_its_own_token(private_box: Box) -> None:
    """The SDK sends no traffic token there."""
    host = private_box.sandbox.get_host(49983)
    assert front.ask(host, "/health").status == 204
    assert front.ask(host, "/files?path=/etc/passwd").status == 401
    assert private_box.sh("echo works").stdout == "works\n"


def test_a_public_sandbox_has_no_traffic_token(shared_box: Box) -> None:
    assert shared_box.sandbox.traffic_access_token is None


def test_the_host_is_masked(make_box: Callable[..., Box]) -> None:
    box = make_box(network={"mask_request_host": "localhost:${PORT}"})
    box.sandbox.files.write("/home/user/app.py", (Path(__file__).parent / "app.py").read_text())
    with box.serving(8080, "python3 /home/user/app.py {}"):
        host = box.sandbox.get_host(8080)
        headers = _headers(front.ask(host).json)
        assert headers["host"] == "localhost:8080" and headers["x-forwarded-host"] == host
        forged = front.ask(host, headers={"X-Forwarded-Host": "forged.example"})
        assert _headers(forged.json)["x-forwarded-host"] == host
    box.sandbox.kill()


def test_every_port_in_a_mask_is_replaced(make_box: Callable[..., Box]) -> None:
    box = make_box(network={"mask_request_host": "p${PORT}.example.com:${PORT}"})
    box.sandbox.files.write("/home/user/app.py", (Path(__file__).parent / "app.py").read_text())
    with box.serving(8080, "python3 /home/user/app.py {}"):
        headers = _headers(front.ask(box.sandbox.get_host(8080)).json)
        assert headers["host"] == "p8080.example.com:8080"
    box.sandbox.kill()


@pytest.mark.parametrize(
    "mask", ["-https://abcd", "two words", "héllo", "a/b", "host:port", "x\r\nY: z", "host:99999"]
)
def test_a_malformed_mask_is_400(node: object, mask: str) -> None:
    body = {"templateID": "base", "network": {"maskRequestHost": mask}}
    reply = front.api("POST", "/v2/sandboxes", body)
    assert reply.status == 400 and "maskRequestHost" in reply.json["message"]


def test_private_traffic_with_v1_needs_secure(node: object) -> None:
    body: dict[str, object] = {"templateID": "base", "network": {"allowPublicTraffic": False}}
    reply = front.api("POST", "/sandboxes", body)
    assert reply.status == 400 and "secure" in reply.json["message"]
    reply = front.api("POST", "/sandboxes", body | {"secure": True})
    assert reply.status == 201 and reply.json["trafficAccessToken"]
    assert front.api("DELETE", f"/sandboxes/{reply.json['sandboxID']}").status == 204


def test_large_bodies_pass_both_ways(app: Box) -> None:
    down = requests.get(_url(app) + "/bytes/50000000", timeout=30)
    assert len(down.content) == 50_000_000
    up = requests.post(_url(app) + "/upload", data=b"x" * 50_000_000, timeout=30)
    assert up.text == "50000000"


_HTTP2 = """
const session = require("node:http2").connect(process.argv[1])
const request = session.request({ ":path": "/bytes/5" })
request.on("response", (headers) => process.stdout.write(headers[":status"] + " "))
request.on("data", (data) => process.stdout.write(data))
request.on("end", () => session.close())
session.on("error", (error) => { throw error })
"""


def test_http2_reaches_an_http1_server(app: Box) -> None:
    done = subprocess.run(
        [NODE_JS, "-e", _HTTP2, _url(app)], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "200 xxxxx"


def test_an_event_arrives_before_the_next_one_is_made(app: Box) -> None:
    with requests.get(_url(app) + "/events", stream=True, timeout=10) as events:
        lines = events.iter_lines(chunk_size=1)
        assert next(lines) == b"data: first"
        requests.get(_url(app) + "/go", timeout=10)
        assert b"data: second" in list(lines)


def test_a_request_body_is_passed_on_as_it_comes(app: Box) -> None:
    host = app.sandbox.get_host(APP)
    with front.connect() as upload:
        head = f"POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 10\r\n\r\n"
        upload.sendall(head.encode() + b"first")
        end = time.monotonic() + 5
        while (arrived := front.ask(host, "/arrived").text) != "5":
            assert time.monotonic() < end, f"{arrived} bytes arrived"
        upload.sendall(b"after")
        assert b"200 OK" in upload.recv(4096)


_WEBSOCKET = """
const messages = ["one", "two".repeat(1000)]
const socket = new WebSocket(process.argv[1])
socket.onopen = () => socket.send(messages[0])
socket.onmessage = ({ data }) => {
  console.log(data === messages.shift())
  messages.length ? socket.send(messages[0]) : socket.close()
}
socket.onerror = ({ message }) => { throw new Error(message) }
"""


def test_websockets_pass(app: Box) -> None:
    url = _url(app).replace("https:", "wss:") + "/echo"
    done = subprocess.run(
        [NODE_JS, "-e", _WEBSOCKET, url], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "true\ntrue\n"
