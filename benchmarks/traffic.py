"""Through the egress gate: by name, by address, without a gate, and as other proxies do it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from e2b import ALL_TRAFFIC, Sandbox

from benchmarks.place import GATE, NAME, SERVER, Place
from benchmarks.report import Report, Row, median
from internet import UPSTREAM_DNS, namespaces

_PROGRAM = Path(__file__).parent / "programs.py"
_INSIDE = "/home/user/programs.py"
_BULK = 1 << 30
_HAPROXY, _NGINX = 9443, 9444

Run = Callable[..., Any]
"""Runs a client of `programs.py` somewhere and returns what it prints."""


def measure(place: Place, report: Report, rounds: int) -> None:
    """Rounds take turns between all the ways."""
    by_name = _sandbox({"allow_out": [NAME], "deny_out": [ALL_TRAFFIC]})
    by_address = _sandbox({"allow_out": [f"{SERVER}/32"], "deny_out": [ALL_TRAFFIC]})
    open_ = _sandbox({})
    ways: dict[str, tuple[Run, str, int]] = {
        "name": (_in(by_name), SERVER, 443),
        "direct": (_in(open_), SERVER, 443),
        "bare": (_bare(place), SERVER, 443),
    }
    _peers(place, report, ways)
    try:
        latencies: dict[str, list[float]] = {way: [] for way in ways}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (run, address, port) in ways.items():
                latencies[way] += run("connect", 40, address, port, NAME)
            for way, (run, address, port) in ways.items():
                rates[way].append(run("rate", 3, 4, address, port, NAME))
        _tell_connections(report, latencies, rates)
        bulk: dict[str, list[float]] = {"name": [], "address": [], "direct": [], "bare": []}
        for _ in range(rounds):
            bulk["name"].append(_in(by_name)("pull", _BULK, SERVER, 80, NAME))
            bulk["address"].append(_in(by_address)("pull", _BULK, SERVER, 8080, SERVER))
            bulk["direct"].append(_in(open_)("pull", _BULK, SERVER, 8080, SERVER))
            bulk["bare"].append(_bare(place)("pull", _BULK, SERVER, 8080, SERVER))
    finally:
        for sandbox in (by_name, by_address, open_):
            sandbox.kill()
    median_of = {way: median(values) for way, values in bulk.items()}
    report.add(
        "Bulk",
        Row(
            "bulk by name / direct",
            median_of["name"] / median_of["direct"],
            "x",
            0.6,
            at_most=False,
        ),
        Row(
            "bulk by IP rule / direct",
            median_of["address"] / median_of["direct"],
            "x",
            0.95,
            at_most=False,
        ),
        Row(
            "bulk by IP rule / no gate at all",
            median_of["address"] / median_of["bare"],
            "x",
            note="the bare client has no limits either",
        ),
    )
    report.add(
        "Bulk, absolute", *(Row(way, value / 1e9, "GB/s") for way, value in median_of.items())
    )


def _tell_connections(
    report: Report, latencies: dict[str, list[float]], rates: dict[str, list[float]]
) -> None:
    p50 = {way: median(values) * 1e3 for way, values in latencies.items()}
    rate = {way: median(values) for way, values in rates.items()}
    report.add(
        "TLS connections",
        Row("by name: added to direct forwarding, p50", p50["name"] - p50["direct"], "ms", 0.2),
        *(
            Row(f"{way}: connect, handshake, answer, p50", value, "ms")
            for way, value in p50.items()
        ),
    )
    for way in set(p50) - {"name", "direct", "bare"}:
        report.add(
            "TLS connections",
            Row(f"{way}: added to no gate at all, p50", p50[way] - p50["bare"], "ms"),
        )
    report.add(
        "New connections",
        Row(
            "new TLS connections a second, by name / direct",
            rate["name"] / rate["direct"],
            "x",
            0.85,
            at_most=False,
        ),
        *(Row(f"{way} / bare", rate[way] / rate["bare"], "x") for way in rate if way != "bare"),
    )


def _sandbox(network: Any) -> Sandbox:
    sandbox = Sandbox.create(timeout=3600, network=network)
    sandbox.files.write(_INSIDE, _PROGRAM.read_text())
    return sandbox


def _in(sandbox: Sandbox) -> Run:
    def run(*arguments: object) -> Any:
        words = " ".join(map(str, arguments))
        return json.loads(sandbox.commands.run(f"python3 {_INSIDE} {words}", timeout=300).stdout)

    return run


def _bare(place: Place) -> Run:
    def run(*arguments: object) -> Any:
        with namespaces.inside(place.bare):
            done = subprocess.run(
                [sys.executable, str(_PROGRAM), *map(str, arguments)],
                check=True,
                capture_output=True,
            )
        return json.loads(done.stdout)

    return run


def _peers(place: Place, report: Report, ways: dict[str, tuple[Run, str, int]]) -> None:
    """HAProxy and nginx that allow one name by SNI, and connect to it by name as well."""
    haproxy = place.scratch / "sni.cfg"
    haproxy.write_text(
        "global\n  maxconn 4000\n"
        f"resolvers dns\n  nameserver a {UPSTREAM_DNS}:53\n  hold valid 60s\n"
        "defaults\n  mode tcp\n  timeout client 1m\n  timeout server 1m\n  timeout connect 5s\n"
        f"frontend f\n  bind {GATE}:{_HAPROXY}\n  tcp-request inspect-delay 5s\n"
        f"  tcp-request content reject unless {{ req.ssl_sni -m str {NAME} }}\n"
        "  tcp-request content do-resolve(txn.to,dns,ipv4) req.ssl_sni\n"
        "  tcp-request content set-dst var(txn.to)\n  tcp-request content set-dst-port int(443)\n"
        "  default_backend b\nbackend b\n  server s 0.0.0.0:0\n"
    )
    place.start(place.namespace, "haproxy", "-db", "-f", str(haproxy))
    ways["HAProxy SNI filter"] = (_bare(place), GATE, _HAPROXY)
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    if shutil.which("nginx") is None or not module.exists():
        report.leave_out("nginx with its stream module is not installed")
    else:
        nginx = place.scratch / "nginx.conf"
        nginx.write_text(
            f"load_module {module};\ndaemon off;\nerror_log stderr crit;\n"
            f"pid {place.scratch}/nginx.pid;\n"
            "events {}\nstream {\n  map $ssl_preread_server_name $to { "
            f"{NAME} {NAME}:443; default ''; }}\n  resolver {UPSTREAM_DNS} ipv6=off;\n"
            f"  server {{ listen {GATE}:{_NGINX}; ssl_preread on; proxy_pass $to; }}\n}}\n"
        )
        place.start(place.namespace, "nginx", "-c", str(nginx))
        ways["nginx ssl_preread"] = (_bare(place), GATE, _NGINX)
    time.sleep(1)
