"""Attacks that need something to happen at the same time; `test_moments.py` carries them out."""

from __future__ import annotations

from attacks.attack import Scenario, Verdict

_REFUSED, _PASSES = Verdict.REFUSED, Verdict.PASSES

TIGHTENED = {
    kind: Scenario(f"the policy tightens: {flow} under way goes on", _REFUSED, _PASSES)
    for kind, flow in (
        ("tcp", "a TCP connection"),
        ("http", "a kept-alive HTTP connection by name"),
        ("udp", "a UDP flow"),
        ("icmp", "a ping"),
    )
}
GATEWAY_KILLED = Scenario(
    "the gateway is killed (kill -9) in mid-flight",
    _REFUSED,
    None,
    note="the kernel refuses until it is back; forwarded flows go on",
)
FORGOTTEN = Scenario("connection tracking forgets a query before it is answered", _REFUSED, None)
HALF_OPEN = Scenario(
    "10,000 idle half-open connections are kept",
    _REFUSED,
    _PASSES,
    note="2,048 a sandbox, 5 s each; others are served meanwhile",
)
SCENARIOS = (*TIGHTENED.values(), GATEWAY_KILLED, FORGOTTEN, HALF_OPEN)
