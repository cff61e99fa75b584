"""The egress policy of a sandbox: what it may reach, as a value. Pure: no I/O.

A policy is parsed once from what the user wrote (:func:`parse_policy`), travels as JSON to the
processes that enforce it, and is asked there by :meth:`EgressPolicy.decide`. The kernel rules
(`sandgate.network.ruleset`) are generated from the same value, so both can be compared.

Order of evaluation, as in E2B: an allowed name, an allowed address, a denied address, default
allow. Allow beats deny whatever the order and however specific. Ranges that no policy can open
are not part of a policy; see :class:`sandgate.guard.AddressGuard`.
"""

from sandgate.policy.names import NameSet, normalise_name
from sandgate.policy.networks import NetworkSet
from sandgate.policy.parsing import (
    ALL_TRAFFIC,
    MAX_DNS_SERVERS,
    MAX_ENTRIES,
    PolicyError,
    normalise_pattern,
    parse_policy,
)
from sandgate.policy.value import (
    RESOLVER,
    WEB_PORTS,
    Decision,
    EgressPolicy,
    Mode,
    ResolverAccess,
)

__all__ = [
    "ALL_TRAFFIC",
    "MAX_DNS_SERVERS",
    "MAX_ENTRIES",
    "RESOLVER",
    "WEB_PORTS",
    "Decision",
    "EgressPolicy",
    "Mode",
    "NameSet",
    "NetworkSet",
    "PolicyError",
    "ResolverAccess",
    "normalise_name",
    "normalise_pattern",
    "parse_policy",
]
