from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from sandgate.supervisor import ports
from sandgate.supervisor.ports import PortError, bind_error, choose_port, require_local

LOOPBACK = IPv4Address("127.0.0.1")
ELSEWHERE = IPv4Address("198.18.77.1")
"""Not configured on this machine."""


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def test_a_port_is_free_or_says_why_not(taken: int, free: int) -> None:
    assert bind_error(LOOPBACK, free) is None
    assert bind_error(LOOPBACK, taken) == "already in use"
    assert bind_error(IPv4Address("127.0.0.2"), taken) is None


def test_a_listener_on_all_addresses_takes_the_port_on_each() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        assert bind_error(LOOPBACK, port) == "already in use"
        assert bind_error(ELSEWHERE, port) == "already in use"


def test_an_address_that_does_not_exist_yet_is_no_obstacle(free: int) -> None:
    assert bind_error(ELSEWHERE, free) is None


def test_a_datagram_port_that_a_wildcard_holds_is_in_use_at_every_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0", 0))
        port = server.getsockname()[1]
        assert bind_error(ELSEWHERE, port, socket.SOCK_DGRAM) == "already in use"
    assert bind_error(ELSEWHERE, port, socket.SOCK_DGRAM) is None


def test_the_entry_must_be_at_an_address_of_the_machine() -> None:
    for local in ("127.0.0.1", "127.3.2.1", "0.0.0.0"):
        require_local(IPv4Address(local))
    with pytest.raises(PortError, match=rf"listen = {ELSEWHERE}: .*no such address; set listen"):
        require_local(ELSEWHERE)


def test_the_port_that_was_set_is_taken_or_refused_with_the_remedy(taken: int, free: int) -> None:
    assert choose_port([LOOPBACK, ELSEWHERE], free, previous=taken) == free
    said = rf"https_port = {taken}: 127\.0\.0\.1:{taken}: already in use; .*ss -ltnp.*another"
    with pytest.raises(PortError, match=said):
        choose_port([LOOPBACK], taken)


def test_without_a_setting_the_first_free_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, taken: int, free: int
) -> None:
    monkeypatch.setattr(ports, "STANDARD_PORT", taken)
    monkeypatch.setattr(ports, "FALLBACK_PORT", free)
    assert choose_port([LOOPBACK], None) == free
    monkeypatch.setattr(ports, "STANDARD_PORT", free)
    monkeypatch.setattr(ports, "FALLBACK_PORT", taken)
    assert choose_port([LOOPBACK], None) == free


def test_a_node_that_takes_over_keeps_the_port_if_it_can(
    monkeypatch: pytest.MonkeyPatch, taken: int, free: int
) -> None:
    monkeypatch.setattr(ports, "STANDARD_PORT", 1)
    assert choose_port([LOOPBACK], None, previous=free) == free
    monkeypatch.setattr(ports, "STANDARD_PORT", free)
    assert choose_port([LOOPBACK], None, previous=taken) == free


def test_with_no_port_left_all_reasons_are_given(
    monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(ports, "STANDARD_PORT", taken)
    monkeypatch.setattr(ports, "FALLBACK_PORT", taken)
    with pytest.raises(PortError, match=rf"no free port .*{taken}: already in use.*https_port"):
        choose_port([LOOPBACK], None)
