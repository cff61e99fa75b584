"""What addresses were answered for: how long that is remembered, and how much of it."""

from __future__ import annotations

from ipaddress import IPv4Address

from sandgate.egress.pins import MAX_ADDRESSES, MAX_NAMES, MIN_SECONDS, Pins

FIRST, SECOND = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")


def test_a_pin_lasts_as_long_as_its_answer_and_a_minute_at_least() -> None:
    pins = Pins()
    pins.add("short.example", [FIRST], ttl=1, now=100)
    pins.add("long.example", [FIRST, SECOND], ttl=300, now=100)
    assert pins.names(FIRST, now=100 + MIN_SECONDS) == ["long.example", "short.example"]
    assert pins.names(FIRST, now=101 + MIN_SECONDS) == ["long.example"]
    assert pins.names(SECOND, now=400) == ["long.example"]
    assert pins.names(SECOND, now=401) == []
    assert pins.names(IPv4Address("192.0.2.3"), now=100) == []


def test_a_later_answer_never_shortens_a_pin() -> None:
    pins = Pins()
    pins.add("a.example", [FIRST], ttl=300, now=0)
    pins.add("a.example", [FIRST], ttl=0, now=100)
    assert pins.names(FIRST, now=300) == ["a.example"]
    pins.add("a.example", [FIRST], ttl=300, now=290)
    assert pins.names(FIRST, now=590) == ["a.example"]


def test_what_a_sandbox_can_make_the_gateway_remember_is_bounded() -> None:
    pins = Pins()
    for number in range(MAX_NAMES + 5):
        pins.add(f"n{number}.example", [FIRST], ttl=60, now=0)
    names = pins.names(FIRST, now=0)
    assert len(names) == MAX_NAMES
    assert names[0] == f"n{MAX_NAMES + 4}.example"
    pins.add("many.example", [SECOND + number for number in range(MAX_ADDRESSES)], ttl=60, now=0)
    assert pins.names(FIRST, now=0) == []
    assert pins.names(SECOND, now=0) == ["many.example"]
