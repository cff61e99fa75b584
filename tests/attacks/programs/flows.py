"""Traffic that goes on while something changes."""

from __future__ import annotations

import resource
import select
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from . import names, tls, web, wire

_TICK = 0.02
COUNTED = 7777


def keep(kinds: list[str], victim: str, friend: str, host: str, seconds: float) -> bool:
    """Flows to `victim` for some time, and datagrams to `friend` beside them.

    True if any flow to the victim was never cut.
    """
    with ThreadPoolExecutor(len(kinds)) as pool:
        return any(pool.map(lambda kind: _keep(kind, victim, friend, host, seconds), kinds))


def _keep(kind: str, victim: str, friend: str, host: str, seconds: float) -> bool:
    end = time.monotonic() + seconds
    whole = True
    with _open(kind, victim) as flow, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        while time.monotonic() < end:
            with suppress(OSError):
                other.sendto(b"friend", (friend, 9999))
            try:
                flow.send(_piece(kind, host))
                with suppress(BlockingIOError, TimeoutError):
                    whole &= bool(flow.recv(65536))
            except OSError:
                whole = False
            time.sleep(_TICK)
    return whole


def _open(kind: str, address: str) -> socket.socket:
    if kind in ("tcp", "http"):
        return wire.connect(address, COUNTED if kind == "tcp" else 80)
    if kind == "udp":
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        flow.connect((address, 9999))
    else:
        try:
            flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
        except PermissionError:  # without the sysctl
            flow = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        flow.connect((address, 0))
    flow.settimeout(wire.PATIENCE)
    return flow


def _piece(kind: str, host: str) -> bytes:
    if kind == "http":
        return wire.get(host)
    if kind == "icmp":
        return bytes.fromhex("0800f7ff00000000")
    return b"flow"


def hammer(address: str, allowed: str, other: str, seconds: float) -> None:
    """All that the gate has to judge, again and again, however it is answered."""
    attempts: tuple[Callable[[], None], ...] = (
        lambda: tls.hello(address, (other,)),
        lambda: tls.hello(address),
        lambda: web.raw(address, f"GET / HTTP/1.1\r\nHost: {other}\r\n\r\n"),
        lambda: web.pipelined(address, allowed, other),
        lambda: names.query(f"c2VjcmV0.{other}"),
        lambda: names.query(f"c2VjcmV0.{other}", transport="tcp"),
    )
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for attempt in attempts:
            with suppress(OSError):
                attempt()


def echoes(address: str, seconds: float) -> str:
    """One TCP connection to an echo; raises ConnectionError if it breaks, TimeoutError if it waits.

    Returns nothing but success: what was sent came back, all the time.
    """
    end = time.monotonic() + seconds
    with socket.create_connection((address, COUNTED), 5) as flow:
        while time.monotonic() < end:
            flow.sendall(b"echo")
            if not flow.recv(100):
                raise ConnectionResetError("closed")
            time.sleep(_TICK)
    return "whole"


def ask_and_go_on(name: str, secret: str, seconds: float) -> None:
    """A query for an allowed name, and from the same port what is not: before and after its answer.

    Only the last ones could pass, should the answer look like the beginning of a conversation.
    """
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(seconds)
        client.sendto(names.message(name), (names.RESOLVER, 53))
        client.recv(2000)
        while time.monotonic() < end:
            client.sendto(names.message(secret), (names.RESOLVER, 53))
            time.sleep(_TICK)


def back_after(address: str, host: str, patience: float) -> float:
    """Seconds until a request for an allowed name is answered, tried without a pause."""
    started = time.monotonic()
    while time.monotonic() - started < patience:
        with suppress(OSError):
            if wire.talk(address, 80, wire.get(host, "Connection: close")):
                return time.monotonic() - started
        time.sleep(_TICK)
    raise TimeoutError(f"not back after {patience} s")


def half_open(address: str, count: int, patience: float) -> bool:
    """Many connections that never say anything: are most still there after `patience` seconds?"""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    waiting = select.poll()
    held: dict[int, socket.socket] = {}
    for _ in range(count):
        client = socket.socket()
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.connect((address, 443))
        held[client.fileno()] = client
        waiting.register(client, select.POLLIN)
    end = time.monotonic() + patience
    while held and (left := end - time.monotonic()) > 0:
        for number, _ in waiting.poll(left * 1000):
            waiting.unregister(number)
            held.pop(number).close()
    return len(held) > count // 2
