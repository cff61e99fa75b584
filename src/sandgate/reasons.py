"""Why traffic of a sandbox passed or was refused: the words that the decision log uses."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a decision came out as it did. Stable: logs and users rely on the values.

    docs/decisions.md says of each what its reader can do about it.
    """

    # By the policy.
    ALLOWED_NAME = "allowed_name"
    """The policy allows the name that was shown, or asked for."""
    ALLOWED_ADDRESS = "allowed_address"
    """The policy allows the address."""
    DEFAULT_ALLOW = "default_allow"
    """The policy denies it nowhere."""
    DENIED_ADDRESS = "denied_address"
    """The policy denies the address, and allows neither it nor a name that was shown."""
    NAME_NOT_ALLOWED = "name_not_allowed"
    """DNS: the policy does not allow the name."""
    NO_RESOLVER = "no_resolver"
    """DNS: the policy allows neither the resolver nor any name."""
    RECORD_TYPE = "record_type"
    """DNS: a type that is not answered while the policy allows names only."""
    POLICY_CHANGED = "policy_changed"
    """The connection was open when a change of policy forbade it."""

    # Whatever the policy says.
    ALWAYS_DENIED = "always_denied"
    """The address is out of reach for every sandbox."""
    SPOOFED_SOURCE = "spoofed_source"
    """The packet's source is not the sandbox's address."""
    IPV6 = "ipv6"
    """There is no IPv6 for sandboxes."""
    IP_OPTIONS = "ip_options"
    """The packet has IP options."""

    # It could not be done.
    NAME_UNRESOLVABLE = "name_unresolvable"
    """The allowed name has no IPv4 address, or its servers did not answer."""
    UNREACHABLE = "unreachable"
    """No address of the destination accepted the connection."""
    LIMIT_CONNECTIONS = "limit_connections"
    """The sandbox has as many connections open as it may."""
    LIMIT_NODE_CONNECTIONS = "limit_node_connections"
    """The sandbox has its share of the connections of the node, and others have the rest."""
    LIMIT_CONNECTION_RATE = "limit_connection_rate"
    """The sandbox opens connections too fast."""
    LIMIT_DNS_RATE = "limit_dns_rate"
    """DNS: the sandbox asks too fast, or too much at once."""
    BAD_REQUEST = "bad_request"
    """A request after the first on a connection could not be followed."""
    GATEWAY_DOWN = "gateway_down"
    """The egress gateway, which decides by name and answers DNS, did not run."""
    UNKNOWN_SANDBOX = "unknown_sandbox"
    """No policy is known for the source address."""
    SANDBOX_REMOVED = "sandbox_removed"
    """The connection was open when its sandbox ended."""
