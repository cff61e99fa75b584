"""Other firewalls on the machine."""

from __future__ import annotations

from network import netlab
from network.netlab import (
    FAR,
    OPEN,
    Lab,
    run,
    tcp_outcome,
)
from sandgate.network import (
    foreign_forward_drop,
    foreign_input_drop,
)
from sandgate.network.namespaces import inside
from sandgate.policy import EgressPolicy

EVERYTHING = EgressPolicy()


def test_other_firewalls_that_drop_are_named(lab: Lab) -> None:
    with inside(lab.host):
        assert foreign_forward_drop() == []
        assert foreign_input_drop() == []
    for table, hook, policy in (
        ("ip filter", "forward", "drop"),
        ("inet other", "forward", "accept"),
        ("inet ufw", "input", "drop"),
        ("ip6 filter", "forward", "drop"),
    ):
        run(lab.host, "nft", "add", "table", *table.split())
        chain = f"{{ type filter hook {hook} priority 0; policy {policy}; }}"
        run(lab.host, "nft", "add", "chain", *table.split(), hook.upper(), chain)
    with inside(lab.host):
        assert foreign_forward_drop() == ["ip filter FORWARD"]
        assert foreign_input_drop() == ["inet ufw INPUT"]


def test_a_dropping_firewall_does_stop_sandboxes_and_the_documented_fix_helps(lab: Lab) -> None:
    sandbox = lab.sandbox(0, EVERYTHING)
    lab.listen(lab.far, "0.0.0.0", 7)
    rules = """table ip filter {
    chain FORWARD { type filter hook forward priority 0; policy drop; }
}"""
    run(lab.host, "nft", "-f", "-", stdin=rules)
    assert tcp_outcome(sandbox, FAR, 7, netlab.SILENCE) == netlab.NOTHING
    for direction in ("iifname", "oifname"):
        run(
            lab.host, "nft", "insert", "rule", "ip", "filter", "FORWARD", direction, "sg*", "accept"
        )
    assert tcp_outcome(sandbox, FAR, 7) == OPEN
