from __future__ import annotations

import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from sandgate.cli.environment import client_environment, exports, misleading, proxies
from sandgate.supervisor.processes import ProcessId
from sandgate.supervisor.record import NodeRecord

KEY = "e2b_" + "0" * 40


def record(**changes: object) -> NodeRecord:
    values: dict[str, object] = {
        "version": "0",
        "supervisor": ProcessId(1, 1, "boot"),
        "phase": "ready",
        "domain": "sandgate.localhost:8443",
        "https_port": 8443,
        "listen": IPv4Address("127.0.0.1"),
        "host": "sandgate.localhost",
        "trusted": Path("/d/ca.pem"),
        "ca": Path("/d/ca.pem"),
        "ca_bundle": Path("/d/bundle.pem"),
    }
    return NodeRecord.model_validate({**values, **changes})


def test_all_five_variables_are_given_for_a_local_authority() -> None:
    assert client_environment(record(), KEY, {}) == {
        "E2B_DOMAIN": "sandgate.localhost:8443",
        "E2B_API_KEY": KEY,
        "SSL_CERT_FILE": "/d/bundle.pem",
        "REQUESTS_CA_BUNDLE": "/d/bundle.pem",
        "NODE_EXTRA_CA_CERTS": "/d/ca.pem",
    }


def test_curl_s_own_variable_is_given_where_it_would_count() -> None:
    assert (
        client_environment(record(), KEY, {"CURL_CA_BUNDLE": "/etc/bundle.pem"})["CURL_CA_BUNDLE"]
        == "/d/bundle.pem"
    )


def test_the_operators_certificate_needs_no_trust_variables() -> None:
    with_own = record(ca=None, ca_bundle=None)
    assert client_environment(with_own, KEY, {}).keys() == {"E2B_DOMAIN", "E2B_API_KEY"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"HTTPS_PROXY": ""}, None),
        ({"HTTPS_PROXY": "http://p:1"}, "sandgate.localhost,.sandgate.localhost"),
        ({"http_proxy": "http://p:1"}, "sandgate.localhost,.sandgate.localhost"),
        (
            {"ALL_PROXY": "socks5://p:1", "NO_PROXY": "a.example, b.example"},
            "a.example,b.example,sandgate.localhost,.sandgate.localhost",
        ),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*", "no_proxy": "*"}, None),
        (
            {
                "HTTPS_PROXY": "http://p:1",
                "NO_PROXY": "sandgate.localhost",
                "no_proxy": "sandgate.localhost",
            },
            None,
        ),
    ],
)
def test_no_proxy_covers_the_node_where_a_proxy_is_set(
    environment: dict[str, str], expected: str | None
) -> None:
    wanted = client_environment(record(), KEY, environment)
    assert wanted.get("NO_PROXY") == expected
    if expected is not None:
        assert "sandgate.localhost" in wanted["no_proxy"]


def test_proxies_and_misleading_variables_are_named() -> None:
    assert proxies({"HTTP_PROXY": "x", "https_proxy": "y", "NO_PROXY": "z"}) == [
        "HTTP_PROXY",
        "https_proxy",
    ]
    assert misleading({"E2B_DEBUG": "true", "E2B_API_URL": "", "E2B_API_KEY": "k"}) == ["E2B_DEBUG"]


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "with space",
        "",
        "it's",
        '"quoted"',
        "$(touch hacked)",
        "`touch hacked`",
        "a;touch hacked",
        "line\nbreak",
        "back\\slash",
        "/weird dir/$HOME/ca.pem",
    ],
)
def test_a_shell_gets_back_exactly_the_value(value: str, tmp_path: Path) -> None:
    script = exports({"VALUE": value}) + 'printf %s "$VALUE"'
    done = subprocess.run(
        ["sh", "-c", script], capture_output=True, cwd=tmp_path, check=True, env={"HOME": "/"}
    )
    assert done.stdout.decode() == value
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []
