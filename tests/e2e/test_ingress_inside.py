"""A sandbox calls a sandbox's public URL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from e2e.box import DENY_ALL, Box

PORT = 8200
_FETCH = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers=dict(a.split("=") for a in sys.argv[2:]))
try:
    reply = urllib.request.urlopen(request, timeout=5)
except urllib.error.HTTPError as error:
    reply = error
print(reply.status, reply.read().decode())
"""


@pytest.fixture
def caller(box: Box) -> Box:
    """A sandbox with a small client, which trusts what the sandbox trusts."""
    box.sandbox.files.write("/home/user/fetch.py", _FETCH)
    return box


@pytest.fixture(scope="module")
def served(make_box: Callable[..., Box]) -> Iterator[Box]:
    """A private sandbox with a server."""
    box = make_box(timeout=1800, network={"allow_public_traffic": False})
    with box.serving(PORT):
        yield box


def _call(caller: Box, url: str, *headers: str) -> str:
    done = caller.sh(f"python3 /home/user/fetch.py {url} {' '.join(headers)}")
    return done.stdout or done.stderr


def _token(served: Box) -> str:
    return f"e2b-traffic-access-token={served.sandbox.traffic_access_token}"


def test_a_sandbox_calls_anothers_url_with_its_token(caller: Box, served: Box) -> None:
    url = f"https://{served.sandbox.get_host(PORT)}/"
    assert _call(caller, url).startswith("403 ")
    assert _call(caller, url, _token(served)).startswith("200 ")


def test_the_callers_policy_decides(caller: Box, served: Box) -> None:
    url = f"https://{served.sandbox.get_host(PORT)}/"
    caller.policy([], DENY_ALL)
    assert "urlopen error" in _call(caller, url, _token(served))
    caller.policy(["1.1.1.1"], DENY_ALL)
    assert "urlopen error" in _call(caller, url, _token(served))
    caller.names("api.example.com")
    assert "urlopen error" in _call(caller, url, _token(served))
    caller.names("*.sandgate.localhost")
    assert _call(caller, url, _token(served)).startswith("200 ")
    caller.names(served.sandbox.get_host(PORT))
    assert _call(caller, url, _token(served)).startswith("200 ")


def test_the_nodes_domain_resolves_to_the_address_that_serves_urls(
    caller: Box, served: Box
) -> None:
    assert caller.dig(served.sandbox.get_host(PORT)) == "NOERROR 198.18.0.1"
    caller.names("google.com")
    assert caller.dig(served.sandbox.get_host(PORT)) == "REFUSED"


@pytest.mark.parametrize("name", ["api.sandgate.localhost", "sandgate.localhost"])
def test_the_api_is_not_reachable_from_inside(caller: Box, name: str) -> None:
    """Not even with a valid key."""
    key = os.environ["E2B_API_KEY"]
    for path in ("/sandboxes", "/v2/sandboxes", "/health"):
        done = caller.sh(
            f"curl -sk -m 5 -o /dev/null -w '%{{http_code}}' --resolve {name}:443:198.18.0.1 "
            f"-H 'X-API-KEY: {key}' https://{name}{path}"
        )
        assert done.stdout in ("000", "400", "403", "404"), done.stdout


def test_node_js_inside_finds_a_sandboxs_url(caller: Box, served: Box) -> None:
    token = served.sandbox.traffic_access_token
    url = f"https://{served.sandbox.get_host(PORT)}/"
    caller.sandbox.files.write(
        "/home/user/fetch.mjs",
        f"const headers = {{ 'e2b-traffic-access-token': '{token}' }}\n"
        f"console.log((await fetch('{url}', {{ headers }})).status)\n",
    )
    done = caller.sh("node fetch.mjs")
    assert done.stdout == "200\n", done.stderr


def test_curl_looks_for_localhost_names_on_its_own_loopback(caller: Box, served: Box) -> None:
    """As the documentation says; `--resolve` helps."""
    host = served.sandbox.get_host(PORT)
    assert caller.curl(f"https://{host}/").exit_code == 7
    header = ("-H", _token(served).replace("=", ": "))
    resolve = ("--resolve", f"{host}:443:198.18.0.1", "-o", "/dev/null", "-w", "%{http_code}")
    assert caller.curl(f"https://{host}/", *resolve, *header).stdout == "200"
