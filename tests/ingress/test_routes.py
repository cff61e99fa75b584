from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from ingress.harness import TOKEN
from sandgate.ingress.routes import Route, RouteError, parse_mask

ADDRESS = IPv4Address("198.18.0.16")


@pytest.mark.parametrize(
    "mask",
    [
        "localhost",
        "localhost:3000",
        "localhost:${PORT}",
        "${PORT}.example.com",
        "a${PORT}b.example.com:${PORT}",
        "App.Example.com.",
        "127.0.0.1:${PORT}",
        "[::1]:8080",
        "my_app",
    ],
)
def test_a_mask_of_host_and_optional_port_is_taken_as_it_is(mask: str) -> None:
    assert parse_mask(mask) == mask


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ("", "empty"),
        ("-https://abcd", "URL"),
        ("https://example.com", "URL"),
        ("example.com/path", "URL or path"),
        ("bücher.example", "ASCII"),
        ("-abcd", "not a host name"),
        ("a b", "not a host name"),
        ("a\r\nX-Evil: 1", "optional :port"),
        ("a\n", "not a host name"),
        ("a;b", "not a host name"),
        ("a|b", "not a host name"),
        ("user@host", "not a host name"),
        ("${port}", "not a host name"),
        ("$PORT", "not a host name"),
        ("${PORT", "not a host name"),
        ("host:", "optional :port"),
        (":80", "not a host name"),
        ("host:0", "between 1 and 65535"),
        ("host:65536", "between 1 and 65535"),
        ("host:1${PORT}", "optional :port"),
        ("host:1:2", "optional :port"),
        ("[::g]", "IPv6"),
        ("[fe80::1%eth0]", "zone"),
        ("a..b", "not a host name"),
        ("a" * 64, "not a host name"),
        (".".join(["a" * 60] * 5), "longer than"),
        ("${PORT}" * 52, "longer than"),
    ],
)
def test_a_malformed_mask_is_refused_with_the_reason(mask: str, why: str) -> None:
    with pytest.raises(RouteError, match=why) as caught:
        parse_mask(mask)
    assert caught.value.field == "maskRequestHost"
    assert "maskRequestHost" in str(caught.value)


@pytest.mark.parametrize(
    "sandbox_id", ["", "ABC", "a-b", "a b", "a\nb", "a;b", "a\\b", "ä", "<<", "a" * 64]
)
def test_an_id_that_a_host_name_cannot_carry_is_refused(sandbox_id: str) -> None:
    with pytest.raises(RouteError, match="sandbox_id"):
        Route(sandbox_id, ADDRESS)


@pytest.mark.parametrize(
    "token", ["", "short", "has space here", "semi;colon", "line\nbreak1", "-"]
)
def test_a_token_that_could_break_out_of_its_row_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(RouteError, match="traffic_token") as caught:
        Route("abc", ADDRESS, token)
    assert not token or token not in str(caught.value).replace("'-'", "")


def test_a_route_checks_its_mask_too() -> None:
    with pytest.raises(RouteError, match="maskRequestHost"):
        Route("abc", ADDRESS, mask_host="a b")


def test_a_route_does_not_show_its_token() -> None:
    assert TOKEN not in repr(Route("abc", ADDRESS, TOKEN))
    assert TOKEN in Route("abc", ADDRESS, TOKEN).value()
