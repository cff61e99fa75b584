"""Other firewalls on the machine that would stop sandboxes' traffic."""

from __future__ import annotations

from contextlib import closing

from sandgate.network.listing import list_base_chains
from sandgate.network.netlink import NetlinkSocket
from sandgate.network.nftables import NETLINK_NETFILTER, Hook
from sandgate.network.ruleset import TABLE


def foreign_forward_drop() -> list[str]:
    """Chains of other tables that drop forwarded packets unless one of their rules accepts.

    Docker and ufw have such a chain (`ip filter FORWARD`, policy drop): an accept in our table does
    not outvote it, and sandboxes would reach nothing. The fix is two rules at its beginning:
    `iptables -I FORWARD -i sg+ -j ACCEPT` and `iptables -I FORWARD -o sg+ -j ACCEPT` (with Docker
    in its `DOCKER-USER` chain; with ufw in /etc/ufw/before.rules); what sandboxes may reach is
    still decided in our table. Chains of the old `iptables-legacy` are not seen.

    Looks in the calling thread's network namespace. Raises OSError.
    """
    return _dropping(Hook.FORWARD)


def foreign_input_drop() -> list[str]:
    """Chains of other tables that drop packets to this machine unless a rule accepts.

    They would stop names and DNS, which the gateway on this machine answers, and sandbox URLs
    inside sandboxes. The fix: `iptables -I INPUT -i sg+ -j ACCEPT` (what is not for the gateway is
    still refused in our table). Otherwise as :func:`foreign_forward_drop`.
    """
    return _dropping(Hook.INPUT)


def _dropping(hook: Hook) -> list[str]:
    with closing(NetlinkSocket(NETLINK_NETFILTER)) as socket:
        chains = list_base_chains(socket)
    return [
        f"{chain.table} {chain.name}"
        for chain in chains
        if chain.drops and chain.hook == hook.number and chain.table != f"inet {TABLE}"
    ]
