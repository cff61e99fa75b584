"""The sandboxes' network on the host: links, routes, kernel rules. Linux, root, one thread."""

from sandgate.network.claim import NamespaceInUseError, require_unclaimed
from sandgate.network.config import HOST_ADDRESS, LinkConfig, NetworkConfig
from sandgate.network.firewalls import foreign_forward_drop, foreign_input_drop
from sandgate.network.host import HostNetwork
from sandgate.network.links import Links
from sandgate.network.netlink import NetlinkError
from sandgate.network.occupied import occupied

__all__ = [
    "HOST_ADDRESS",
    "HostNetwork",
    "LinkConfig",
    "Links",
    "NamespaceInUseError",
    "NetlinkError",
    "NetworkConfig",
    "foreign_forward_drop",
    "foreign_input_drop",
    "occupied",
    "require_unclaimed",
]
